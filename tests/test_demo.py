"""The demonstration's data, and its steps with a scripted model (the real one in .ci/run)."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from memalign import Judge, Scale
from memalign.demo import INSTRUCTIONS, cases, run
from memalign.embedders.scripted import HashEmbedder
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
