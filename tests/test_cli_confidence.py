"""The commands around confidence: judge and eval with abstention, calibrate with its diagram, suggest."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeJudge
from endpoint import ScriptedEndpoint, completion
from memalign import Scale
from memalign.calibration import Calibration
from memalign.cli.calibrate import _show
from memalign.memory.revisions import Decision
from memalign.models import ChatReply, ChatRequest, TokenLogprobs
from memalign.models.scripted import ScriptedChatModel
from memalign.reliability import reliability
from test_cli import Run, endpoint, jsonl, judge, logprobs, row, run  # noqa: F401 - fixtures


def graded(body: dict[str, Any]) -> dict[str, Any]:
    """Sure of replies with an even number, unsure of the others; finds everything good."""
    item = body["messages"][-1]["content"]
    number = int(item.split("number ")[1].split()[0])
    return completion("yes", logprobs=logprobs("yes", 0.95 if number % 2 == 0 else 0.6))


@pytest.fixture
def sure(run: Run, judge: str, endpoint: ScriptedEndpoint) -> ScriptedEndpoint:  # noqa: F811
    run("init", "--judge", "polite", "--no-explain")
    endpoint.chat = graded
    return endpoint


def test_judge_marks_what_it_leaves_to_the_experts(run: Run, sure: ScriptedEndpoint, tmp_path: Path) -> None:  # noqa: F811
    file = jsonl(tmp_path / "items.jsonl", *({"id": f"i{n}", "outputs": f"a reply, number {n}"} for n in range(4)))
    result = run("judge", file, "--abstain-below", "0.8")
    verdicts = {line["id"]: line["verdict"] for line in map(json.loads, result.stdout.splitlines())}
    assert [verdicts[f"i{n}"]["abstained"] for n in range(4)] == [False, True, False, True]
    assert verdicts["i1"]["value"] is True
    assert "4 judged, 2 of them abstained" in result.stderr
    one = run("judge", "--outputs", "a reply, number 1", "--abstain-below", "0.8").stdout
    assert "verdict: yes (confidence .60); it abstains: this is its best guess, ask an expert" in one
    assert "abstains" not in run("judge", "--outputs", "a reply, number 2", "--abstain-below", "0.8").stdout
    run("judge", file, "--abstain-below", "80", code=2)


def test_a_setting_of_the_judge_is_kept(run: Run, sure: ScriptedEndpoint) -> None:  # noqa: F811
    assert "abstain_below changed from None to 0.8" in run("init", "--judge", "polite", "--abstain-below", "0.8").stdout
    assert json.loads(run("judge", "--outputs", "a reply, number 1", "--json").stdout)["abstained"] is True
    assert json.loads(run("judge", "--outputs", "a reply, number 1", "--abstain-below", "0.1", "--json").stdout)["abstained"] is False


def test_eval_tells_coverage_beside_agreement(run: Run, sure: ScriptedEndpoint, tmp_path: Path) -> None:  # noqa: F811
    file = jsonl(tmp_path / "test.jsonl", *(row(number, value=number % 2 == 0, rationale="") for number in range(10, 18)))
    shown = run("eval", file, "--abstain-below", "0.8").stdout
    assert ["coverage", ".50"] in [line.split() for line in shown.splitlines()]
    told = json.loads(run("eval", file, "--abstain-below", "0.8", "--json").stdout)["aligned"]
    assert (told["n"], told["abstained"], told["coverage"], told["accuracy"]["value"]) == (4, 4, 0.5, 1.0)


def test_what_the_model_does_not_read_is_told(run: Run, sure: ScriptedEndpoint, tmp_path: Path) -> None:  # noqa: F811
    run("align", jsonl(tmp_path / "feedback.jsonl", *(row(number, value=number % 2 == 0, rationale="") for number in range(24))))
    run("memory", "add", "Say sorry first.")
    run("memory", "unpin", "g1")
    assert "does not help this model" in run("calibrate", "--ablate").stdout
    assert "the model reads only the pinned ones" in run("memory", "list").stdout
    assert "reads pinned guidelines only" in run("memory", "utility").stdout
    assert "the model reads pinned guidelines only" in run("memory", "diff", "3", "4").stdout
    run("calibrate", "--no-ablate")
    assert "the model reads only" not in run("memory", "list").stdout
    assert "reads pinned guidelines only" not in run("memory", "utility").stdout


def test_calibrate_shows_figures_diagram_and_threshold(run: Run, sure: ScriptedEndpoint, tmp_path: Path) -> None:  # noqa: F811
    assert "nothing was fitted" in run("calibrate", code=1).stdout
    run("align", jsonl(tmp_path / "feedback.jsonl", *(row(number, value=number % 2 == 0, rationale="") for number in range(24))))
    plot = tmp_path / "plots" / "reliability.png"
    result = run("calibrate", "--plot", str(plot), "--agreement", "0.9")
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "wrote" in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("revision 2: model weight")
    assert "calibration error" in result.stdout
    assert any(line.startswith("as fitted") for line in lines)
    assert "right █, confidence |" in result.stdout
    assert "for an agreement of .90: --abstain-below" in result.stdout
    told = json.loads(run("calibrate", "--json").stdout)
    assert told["revision"] == 3
    assert told["after"]["brier"] < told["before"]["brier"]
    assert told["covered"]["agreement"]["value"] >= told["wanted_agreement"] == 0.9
    assert "fit it anew" in run("init", "--judge", "polite", "--votes", "3").stdout


def test_a_threshold_as_printed_keeps_what_it_promises(run: Run, sure: ScriptedEndpoint, tmp_path: Path) -> None:  # noqa: F811
    """The printed confidence is rounded down, so that no verdict on its edge is lost."""
    run("align", jsonl(tmp_path / "feedback.jsonl", *(row(number, value=number % 2 == 0, rationale="") for number in range(24))))
    told = json.loads(run("calibrate", "--json").stdout)["covered"]
    printed = run("calibrate").stdout.split("--abstain-below ")[1].split()[0]
    assert float(printed) <= told["threshold"] <= float(printed) + 0.001


@pytest.mark.parametrize(
    ("kept", "others"), [(0.8914, 0.8911), (0.8914, 0.5), (1.0, 0.9), (0.8, 0.8 - 1e-12), (0.3, 0.2999999999999999), (0.0004, 0.0001)]
)
def test_a_threshold_as_printed_lets_in_no_verdict_that_its_figure_left_out(capsys: pytest.CaptureFixture[str], kept: float, others: float) -> None:
    after = reliability(Scale.boolean(), [True, False, False], [True] * 3, [[kept, 1 - kept], *[[others, 1 - others]] * 2])
    _show(Scale.boolean(), Calibration(judged=3, decision=Decision(), revision=1, note="", before=after, after=after), 0.9)
    printed = capsys.readouterr().out.split("--abstain-below ")[1].split()[0]
    assert others < float(printed) <= kept
    assert not printed.endswith(".")
    assert len(printed) <= 5 or kept - others < 0.001


def test_suggest_ranks_items_with_reasons(run: Run, sure: ScriptedEndpoint, tmp_path: Path) -> None:  # noqa: F811
    run("align", jsonl(tmp_path / "feedback.jsonl", *(row(number, rationale="") for number in range(3))))
    pool = [{"id": f"i{n}", "outputs": f"something of another kind, number {n}"} for n in range(5)]
    file = jsonl(tmp_path / "items.jsonl", *pool, {k: v for k, v in row(1).items() if k in ("inputs", "outputs")}, "broken")
    shown = run("suggest", file, "-n", "2", code=1)
    assert shown.stdout.splitlines()[0].startswith("1. row ")
    assert shown.stdout.count("score") == 2
    assert "skipped" in shown.stderr
    before = len(sure.requests)
    told = json.loads(run("suggest", file, "-n", "9", "--calls", "2", "--json", code=1).stdout)
    assert [entry["id"] for entry in told["suggestions"]].count("i1") == 1
    assert len(told["suggestions"]) == 5, "what memory holds is not suggested"
    assert sum(entry["confidence"] is not None for entry in told["suggestions"]) == 2
    assert {"row", "id", "item", "score", "parts", "reasons"} <= told["suggestions"][0].keys()
    assert sum("chat" in asked.path for asked in sure.requests[before:]) == 2, "the budget of calls"
    assert "there are no items" in run("suggest", jsonl(tmp_path / "none.jsonl"), code=2).stderr


def test_orders_that_disagree_are_told(make_judge: MakeJudge, capsys: pytest.CaptureFixture[str]) -> None:
    from memalign.cli.judge import _show

    judge = make_judge(ScriptedChatModel(lambda request: "A"), scale=Scale.pairwise(), explain=False)  # noqa: F811
    _show(judge, judge(outputs={"a": "x", "b": "y"}))
    assert "the two orders disagree: A as given, B when swapped" in capsys.readouterr().out
    score = make_judge(ScriptedChatModel(five), scale=Scale.score(1, 5), explain=False, name="score")
    _show(score, score(outputs="x"))
    assert "mean score: 4.50" in capsys.readouterr().out


def five(request: ChatRequest) -> ChatReply:
    top = (("5", math.log(0.5)), ("4", math.log(0.5)))
    return ChatReply(text="5", logprobs=(TokenLogprobs("5", math.log(0.5), top),))
