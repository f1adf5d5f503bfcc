"""The demonstration: a real judge learns a shop's house rules from its lead's corrections, and every number is measured in the run.

The cases are written for it: 128 replies of a fictional shop's customer support, judged by two leads after six rules that nobody told the judge.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib.resources import files
from typing import Any

from memalign import edge
from memalign.agreement import Agreement, Paired, paired
from memalign.alignment import AlignReport
from memalign.calibration import Calibration
from memalign.judge import Judge
from memalign.records import Episode, Failure, Feedback, Guideline, Usage, Verdict
from memalign.rendering import search_text

NEW_REASON = "From today every reply must end with the agent's first name. This one is not signed."
ACTOR = "demo"
INSTRUCTIONS = "Decide whether the reply is one that our shop's customer support would send."

SAMPLE = 12
"""Records on which model and vote are weighed."""

PASS_SECONDS = 90.0
"""Time for one pass over the unseen items."""

FEWEST_UNSEEN, MOST_UNSEEN = 24, 48

Tell = Callable[[str, Any], None]
"""Called with the name of a finished step and its result."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The judge on the unseen items after so many records of feedback."""

    records: int
    agreement: Agreement
    guidelines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A verdict on an unseen item that alignment changed."""

    item: Feedback
    before: Verdict
    after: Verdict
    model_alone: float | None
    """The model's own probability of yes, before the cases' vote."""
    case: Episode | None
    """The case that carried the vote most."""
    guideline: Guideline | None
    """What was distilled from that case; without one, the guideline nearest to the item."""
    distilled: bool
    """Whether it was distilled from that case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A record that the expert overwrote, and the judge before and after."""

    old: Feedback
    new: Feedback
    before: Verdict
    after: Verdict
    report: AlignReport


@dataclass(slots=True)
class Outcome:
    """All that was measured."""

    model: str
    stages: list[Stage] = field(default_factory=list)
    reports: list[AlignReport] = field(default_factory=list)
    calibrations: list[Calibration] = field(default_factory=list)
    seen: Agreement | None = None
    test: Paired | None = None
    changes: list[Change] = field(default_factory=list)
    correction: Correction | None = None
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary (times as text)."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return found


def cases(split: str) -> list[Feedback]:
    """The cases of a split, ``feedback`` or ``unseen``, in the order in which the leads judged them."""
    lines = files("memalign.demo").joinpath("support.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == split]
    names = ("id", "inputs", "outputs", "value", "rationale", "annotator")
    return [Feedback(**{name: row[name] for name in names}, created_at=datetime.fromisoformat(row["created_at"]), source="demo") for row in rows]


def run(judge: Judge, *, feedback: int, unseen: int | None, seen: int, tell: Tell, progress: Progress) -> Outcome:
    """The whole demonstration with a judge of the boolean scale and empty memory; ``tell`` hears of every step as it ends.

    ``unseen`` None: as many unseen items as this machine's first verdicts leave time for.
    """
    started = time.perf_counter()
    lessons = balanced(cases("feedback"), feedback)
    outcome = Outcome(model=str(judge.settings["model"]))

    def measured(stage: Stage) -> None:
        outcome.stages.append(stage)
        tell("stage", stage)

    exam, before = _sat(judge, unseen, progress)
    measured(Stage(records=0, agreement=judge.agreement(exam, before), guidelines=0))
    after = before
    for number, part in enumerate(parts := _parts(lessons), start=1):
        report = judge.align(part, actor=ACTOR, progress=progress)
        outcome.reports.append(report)
        tell("aligned", report)
        calibration = judge.calibrate(sample=SAMPLE, actor=ACTOR, progress=progress)
        outcome.calibrations.append(calibration)
        tell("calibrated", calibration)
        reads = calibration.decision is None or calibration.decision.guidelines
        if reads and number < len(parts):
            continue  # with other guidelines the model would have to read every item anew: only the end of the curve is worth that time
        after = judge.batch(exam, own=False, progress=progress)
        held = judge.memory.episodes()
        measured(Stage(records=len(held), agreement=judge.agreement(exam, after), guidelines=len(judge.memory.guidelines())))
    values = [[verdict.value if isinstance(verdict, Verdict) else None for verdict in verdicts] for verdicts in (before, after)]
    outcome.test = paired(judge.scale, [record.value for record in exam], *values)
    tell("test", outcome.test)
    outcome.changes = changes(judge, exam, before, after)
    tell("changes", outcome.changes)
    reviewed = balanced(lessons, seen)
    outcome.seen = judge.agreement(reviewed, judge.batch(reviewed, progress=progress))
    tell("seen", outcome.seen)
    outcome.correction = correct(judge, lessons)
    tell("correction", outcome.correction)
    outcome.usage, _, _ = judge.memory.spent()
    outcome.seconds = time.perf_counter() - started
    return outcome


def _parts(lessons: Sequence[Feedback]) -> list[Sequence[Feedback]]:
    """A quarter, a quarter and a half."""
    quarter = len(lessons) // 4
    return [lessons[:quarter], lessons[quarter : 2 * quarter], lessons[2 * quarter :]]


def _sat(judge: Judge, unseen: int | None, progress: Progress) -> tuple[list[Feedback], list[Verdict | Failure]]:
    """The unseen items with the unaligned judge's verdicts; of how many, its first four verdicts on this machine decide if nobody else does."""
    first = balanced(cases("unseen"), 4)
    verdicts = {record.id: judge.batch([record], memory="none", own=False)[0] for record in first}
    seconds = [verdict.seconds for verdict in list(verdicts.values())[1:] if isinstance(verdict, Verdict)]  # the first one loads the model
    affordable = max(FEWEST_UNSEEN, min(MOST_UNSEEN, int(PASS_SECONDS / max(seconds, default=PASS_SECONDS)) // 2 * 2))
    exam = balanced(cases("unseen"), affordable if unseen is None else unseen)
    rest = [record for record in exam if record.id not in verdicts]
    verdicts |= dict(zip([record.id for record in rest], judge.batch(rest, memory="none", own=False, progress=progress), strict=True))
    return exam, [verdicts[record.id] for record in exam]


def changes(judge: Judge, exam: Sequence[Feedback], before: Sequence[Verdict | Failure], after: Sequence[Verdict | Failure]) -> list[Change]:
    """Up to three verdicts that alignment changed, the mended ones first, with what changed them."""
    changed = [
        (record, old, new)
        for record, old, new in zip(exam, before, after, strict=True)
        if isinstance(old, Verdict) and isinstance(new, Verdict) and old.value != new.value
    ]
    changed.sort(key=lambda found: found[2].value != found[0].value)
    guidelines = judge.memory.guidelines()
    episodes = {episode.feedback.id: episode for episode in judge.memory.episodes()}
    found = []
    for record, old, new in changed[:3]:
        case = episodes[new.voter_ids[0]] if new.voter_ids else None
        stands_for = None if case is None else next((g for g in guidelines if case.feedback.id in g.evidence_for), None)
        place = nearest(judge, search_text(record.item), [guideline.text for guideline in guidelines]) if stands_for is None else None
        found.append(
            Change(
                item=record,
                before=old,
                after=new,
                model_alone=None if new.probabilities is None else new.probabilities["yes"],
                case=case,
                guideline=stands_for if place is None else guidelines[place],
                distilled=stands_for is not None,
            )
        )
    return found


def correct(judge: Judge, lessons: Sequence[Feedback]) -> Correction:
    """The lead changes her mind on a case that she had approved: the judge is asked before and after."""
    old = next(record for record in lessons if record.value is True)
    before = judge(inputs=old.inputs, outputs=old.outputs)
    new = replace(old, value=False, rationale=NEW_REASON)
    report = judge.overwrite(new, actor=ACTOR)
    return Correction(old=old, new=new, before=before, after=judge(inputs=old.inputs, outputs=old.outputs), report=report)


def nearest(judge: Judge, text: str, others: Sequence[str]) -> int | None:
    """The place of the text that is most similar by the judge's embedder."""
    if not others:
        return None
    vectors = edge.run(judge.session.embedder.embed([text, *others]))
    return int((vectors[1:] @ vectors[0]).argmax())


def balanced(records: Sequence[Feedback], size: int) -> list[Feedback]:
    """The first records in order, as many of each verdict."""
    half = size // 2
    kept = [record for value in (True, False) for record in [r for r in records if r.value is value][: half if value else size - half]]
    return sorted(kept, key=lambda record: record.created_at)
