"""The demonstration's data, and its steps with a scripted model (the real one in .ci/run)."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from memalign import Judge, Scale
from memalign.cli import app
from memalign.demo import INSTRUCTIONS, cases, run
from memalign.embedders.scripted import HashEmbedder
from memalign.errors import ConfigurationError
from memalign.models import ChatReply, ChatRequest, TokenLogprobs
from memalign.models.scripted import ScriptedChatModel

VAGUE = re.compile(r"\b(soon|shortly|in a few days|as soon as possible|before long|in due course)\b", re.IGNORECASE)


def rows() -> list[dict[str, Any]]:
    text = files("memalign.demo").joinpath("support.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_data_is_balanced_and_split_by_group() -> None:
    found = rows()
    assert len(found) >= 40
    groups = {split: {row["group"] for row in found if row["split"] == split} for split in ("feedback", "unseen")}
    assert not groups["feedback"] & groups["unseen"]
    for split in groups:
        values = Counter(row["value"] for row in found if row["split"] == split)
        assert values[True] == values[False]
        broken = Counter(row["rule"] for row in found if row["split"] == split and not row["value"])
        assert len(broken) == 6
        assert max(broken.values()) - min(broken.values()) <= 1
    assert sum(bool(row["rationale"]) for row in found) > len(found) * 0.75
    assert len({row["outputs"] for row in found}) == len(found)


def test_replies_keep_the_rules_that_can_be_checked_by_words() -> None:
    for row in rows():
        assert bool(VAGUE.search(row["outputs"])) is (row["rule"] == "R2"), row["id"]


def scripted(request: ChatRequest) -> ChatReply | str:
    if request.purpose == "distil":
        return "Name the day on which it happens."
    vague = bool(VAGUE.search(request.messages[-1].content))
    yes = 0.3 if vague else 0.6
    top = (("yes", math.log(yes)), ("no", math.log(1 - yes)))
    label, logprob = max(top, key=lambda pair: pair[1])
    return ChatReply(text=label, logprobs=(TokenLogprobs(label, logprob, top),))


def test_every_step_is_told_and_measured(tmp_path: Path) -> None:
    told: list[str] = []
    judge = Judge(
        "appropriate",
        INSTRUCTIONS,
        Scale.boolean(),
        ScriptedChatModel(scripted, name="local/scripted"),
        memory=str(tmp_path / "demo.db"),
        embedder=HashEmbedder(),
    )
    outcome = run(judge, feedback=24, unseen=12, seen=4, tell=lambda step, _result: told.append(step), progress=lambda *_: None)
    judge.close()
    steps = ["stage", "aligned", "calibrated", *["aligned", "calibrated", "stage"] * 2, "test", "changes", "seen", "correction"]
    assert told == steps
    assert [stage.records for stage in outcome.stages] == [0, 12, 24]  # six records are too few to calibrate on
    assert outcome.correction is not None
    assert outcome.correction.new.id == outcome.correction.old.id
    assert outcome.correction.report.changed == 1
    assert outcome.usage.calls > 36
    assert json.loads(json.dumps(outcome.to_dict()))["model"] == "local/scripted"


def test_cases_come_in_the_order_of_judging() -> None:
    times = [record.created_at for record in cases("feedback")]
    assert times == sorted(times)
    with pytest.raises(IndexError):
        cases("nothing")[0]


# The command


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Runs the command on a share of the data, with a scripted model, in a folder ``out``."""
    monkeypatch.setattr("memalign.models.open_chat_model", lambda name: ScriptedChatModel(scripted, name=name))
    monkeypatch.setattr("memalign.embedders.open_embedder", lambda _: HashEmbedder())

    def run_demo(*options: str, out: str = "out", code: int = 0) -> Result:
        small = ["--model", "local/scripted", "--feedback", "8", "--unseen", "4", "--seen", "2"]
        result = CliRunner().invoke(app, ["demo", *small, "--out", str(tmp_path / out), *options], env={"COLUMNS": "1000"})
        assert result.exit_code == code, result.output
        return result

    return run_demo


SHARE = ("--feedback", "24", "--unseen", "6", "--seen", "4")
"""Enough for a verdict to change."""

STORY = ("Before any feedback", "Aligned", "After 24 records", "Verdicts that changed", "A live correction", "Learning curve", "Cost of all this")


def test_the_command_tells_the_story_and_leaves_the_curve_the_numbers_and_the_memory(demo: Callable[..., Result], tmp_path: Path) -> None:
    story = demo(*SHARE).stdout
    assert sorted(STORY, key=story.index) == list(STORY)
    assert f"memalign memory list --db {tmp_path / 'out' / 'demo.db'}" in story
    assert (tmp_path / "out" / "learning-curve.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((tmp_path / "out" / "demo.json").read_text(encoding="utf-8"))
    assert [stage["records"] for stage in numbers["stages"]] == [0, 12, 24]
    assert (numbers["correction"]["before"]["value"], numbers["correction"]["after"]["value"]) == (True, False)
    with closing(Judge.load(str(tmp_path / "out" / "demo.db"), "appropriate")) as judge:
        assert len(judge.memory.episodes()) == 24


def test_in_json_the_command_prints_the_numbers_alone(demo: Callable[..., Result], tmp_path: Path) -> None:
    assert json.loads(demo("--json").stdout) == json.loads((tmp_path / "out" / "demo.json").read_text(encoding="utf-8"))


def test_what_a_model_says_is_shown_as_it_is(demo: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def marked(request: ChatRequest) -> ChatReply | str:
        return "Name the [day] on which it happens, [/INST] :smile: \x1b[2J." if request.purpose == "distil" else scripted(request)

    monkeypatch.setattr("memalign.models.open_chat_model", lambda name: ScriptedChatModel(marked, name=name))
    story = demo(*SHARE, out="out[/x]").stdout
    assert "+ g1  Name the [day] on which it happens, [/INST] :smile: \\x1b[2J." in story
    assert "distilled from it, g1: Name the [day] on which it happens, [/INST] :smile: \\x1b[2J." in story
    assert "out[/x]/demo.db" in story


def test_the_demo_deletes_only_what_it_made(demo: Callable[..., Result], tmp_path: Path) -> None:
    demo()
    (tmp_path / "out" / "demo.db.bak").write_text("precious")
    (tmp_path / "out" / "demo.db-index-1-abc").write_text("of the former memory")
    demo()
    assert (tmp_path / "out" / "demo.db.bak").read_text() == "precious"
    assert not (tmp_path / "out" / "demo.db-index-1-abc").exists()
    with closing(Judge.load(str(tmp_path / "out" / "demo.db"), "appropriate")) as judge:
        judge.memory.pin(judge.memory.guidelines()[0].id)
    assert "name another folder with --out" in demo(code=2).stderr
    assert (tmp_path / "out" / "demo.db").exists()


@pytest.mark.parametrize("name", ["demo.db", "demo.json", "learning-curve.png"])
def test_the_demo_leaves_files_of_others_alone(demo: Callable[..., Result], tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("precious")
    assert f"{name}, which no demo left there" in demo(out="mine", code=2).stderr
    assert {path.name: path.read_text() for path in (tmp_path / "mine").iterdir()} == {name: "precious"}


def test_another_judge_in_the_memory_of_the_demo_stays(demo: Callable[..., Result], tmp_path: Path) -> None:
    demo()
    memory = str(tmp_path / "out" / "demo.db")
    with closing(Judge("mine", "Is it kind?", Scale.boolean(), "local/scripted", memory=memory)) as judge:
        assert judge.memory.history() == []
    assert "demo.db, which no demo left there" in demo(code=2).stderr
    assert Judge.load(memory, "mine").instructions == "Is it kind?"


@pytest.mark.parametrize(("module", "package"), [("altair", "altair"), ("vl_convert", "vl-convert-python")])
def test_what_draws_the_curve_is_missed_at_the_start(
    demo: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = demo(code=2)
    assert f"{package} is not installed; run: pip install 'memalign[plots]'" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_the_numbers_are_kept_when_the_curve_cannot_be_drawn(demo: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ConfigurationError("no fonts")

    monkeypatch.setattr("memalign.plots.save_png", broken)
    demo(code=2)
    assert json.loads((tmp_path / "out" / "demo.json").read_text())["stages"]


def test_a_folder_that_cannot_be_used_is_named(demo: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("no folder")
    assert "cannot use the folder" in demo(out="afile", code=2).stderr
