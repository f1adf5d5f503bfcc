"""``memalign eval``: how far a judge agrees with experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memalign.cli.options import AbstainBelow, AsJson, Database, JudgeName, Retrieve, Votes
from memalign.errors import ConfigurationError

if TYPE_CHECKING:
    from memalign.agreement import Agreement, Paired
    from memalign.judge import Judge
    from memalign.recalling import Part
    from memalign.records import Failure, Feedback, Verdict

_PARTS: dict[str, Part] = {"unaligned": "none", "aligned": "both"}


def evaluate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Experts' feedback as JSONL, CSV or Parquet; - is JSONL on standard input.")],
    db: Database,
    judge: JudgeName = "",
    unaligned: Annotated[bool, typer.Option("--unaligned", help="Measure the judge without its memory.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Measure it without and with its memory, and test the difference.")] = False,
    min_agreement: Annotated[float | None, typer.Option(help="Exit with 1 when balanced accuracy is below this.", min=0.0, max=1.0)] = None,
    abstain_below: AbstainBelow = None,
    votes: Votes = None,
    retrieve: Retrieve = None,
    json: AsJson = False,
) -> None:
    """Measure the agreement with experts.

    An item's own case is hidden from the judge. Where it abstains it is not measured: the share of items that it decides is told beside.

    Exit code 1: bad rows were skipped, items failed, or balanced accuracy is below --min-agreement.
    """
    from memalign.baseline import length_baseline
    from memalign.cli.align import read
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, progress
    from memalign.cli.retrieving import retrieving
    from memalign.cli.weights import watched

    if unaligned and compare:
        raise ConfigurationError("--compare measures the judge without memory as well: leave --unaligned out")
    with opened(db, judge) as stored:
        found = retrieving(stored, retrieve)
        records, problems = read([file], found.scale)
        if not records:
            raise ConfigurationError(f"there is nothing to measure in {file}")
        names = ["unaligned", "aligned"] if compare else ["unaligned"] if unaligned else ["aligned"]
        with progress() as tell, watched(found, tell):
            care: dict[str, Any] = {"own": False, "abstain_below": abstain_below, "votes": votes}
            results = {name: found.batch(records, memory=_PARTS[name], progress=_named(tell, name), **care) for name in names}
    measured = {name: found.agreement(records, verdicts) for name, verdicts in results.items()}
    test = _test(found, records, results) if compare else None
    baseline = length_baseline(records, [record.value for record in records])
    decisive = measured[names[-1]]
    passed = _passed(decisive, min_agreement)
    if json:
        document = {name: measure.to_dict() for name, measure in measured.items()}
        wrong = _disagreements(records, results[names[-1]])
        emit(
            {
                **document,
                "paired": test.to_dict() if test else None,
                "length_baseline": baseline,
                "min_agreement": min_agreement,
                "passed": passed,
                "disagreements": wrong,
                "problems": problems,
            }
        )
    else:
        _show(measured, test, baseline)
    _complain(decisive, min_agreement, passed, results)
    attention = any(not problem["warning"] for problem in problems) or any(measure.failures for measure in measured.values())
    raise typer.Exit(_exit_code(results, attention or passed is False))


def _named(tell: Callable[[str, int, int], None], name: str) -> Callable[[str, int, int], None]:
    return lambda stage, done, total: tell(f"{stage} {name}", done, total)


def _test(judge: Judge, records: Sequence[Feedback], results: dict[str, list[Verdict | Failure]]) -> Paired:
    from memalign.agreement import paired
    from memalign.records import Verdict

    values = {name: [v.value if isinstance(v, Verdict) and not v.abstained else None for v in verdicts] for name, verdicts in results.items()}
    return paired(judge.scale, [record.value for record in records], values["unaligned"], values["aligned"])


def _disagreements(records: Sequence[Feedback], results: Sequence[Verdict | Failure]) -> list[dict[str, Any]]:
    from memalign.records import Failure

    found: list[dict[str, Any]] = []
    for record, result in zip(records, results, strict=True):
        if isinstance(result, Failure):
            found.append({"id": record.id, "expert": record.value, "failure": result.error})
        elif result.value != record.value:
            said = {"judge": result.value, "abstained": result.abstained, "rationale": result.rationale}
            found.append({"id": record.id, "expert": record.value, **said})
    return found


def _show(measured: dict[str, Agreement], test: Paired | None, baseline: float | None) -> None:
    from memalign.agreement import METRICS, short
    from memalign.cli.printing import say, table

    names = [name for name in METRICS if any(name in measure.metrics for measure in measured.values())]
    rows = [[name.replace("_", " "), *(measure.metrics.get(name, "-") for measure in measured.values())] for name in names]
    rows.append(["items", *(str(measure.n) for measure in measured.values())])
    if any(measure.failures for measure in measured.values()):
        rows.append(["failures", *(str(measure.failures) for measure in measured.values())])
    if any(measure.abstained for measure in measured.values()):
        rows.append(["abstained", *(str(measure.abstained) for measure in measured.values())])
        rows.append(["coverage", *("-" if measure.coverage is None else short(measure.coverage) for measure in measured.values())])
    table(["metric (95 % interval)", *measured], rows)
    if baseline is not None:
        say(f"length of the output alone ranks the labels at {short(baseline)} (.50 is chance)")
    if test is not None:
        say("with memory: " + "; ".join(test.lines()))
    for name, measure in measured.items():
        say("")
        _cross(name, measure)
        if measure.position_bias is not None:
            say(measure.position_bias.line())
        for remark in measure.notes:
            say(f"note: {remark}")


def _cross(name: str, measure: Agreement) -> None:
    """The table of experts' and judge's verdicts, as far as a reader can take one in."""
    from memalign.agreement import MOST_LABELS_CROSSED
    from memalign.cli.printing import say, table

    found = measure.confusion
    labels = list(dict.fromkeys([*found, *(label for row in found.values() for label in row)]))
    if len(labels) > MOST_LABELS_CROSSED:
        say(f"{name}: {len(labels)} different verdicts, too many for a table; --json has the pairs that occur")
        return
    say(f"{name}: expert (rows) and judge (columns)")
    table(["", *labels], [[label, *(str(found.get(label, {}).get(other, 0)) for other in labels)] for label in labels])


def _passed(measure: Agreement, least: float | None) -> bool | None:
    if least is None:
        return None
    return measure.balanced_accuracy is not None and measure.balanced_accuracy.value >= least


def _complain(measure: Agreement, least: float | None, passed: bool | None, results: dict[str, list[Verdict | Failure]]) -> None:
    from memalign.agreement import short
    from memalign.cli.printing import note
    from memalign.records import Failure

    failed = [result for verdicts in results.values() for result in verdicts if isinstance(result, Failure)]
    if failed:
        note(f"{len(failed)} judgement(s) failed; the last: {failed[-1].error}")
    if passed is False and least is not None:
        found = "undefined" if measure.balanced_accuracy is None else short(measure.balanced_accuracy.value, digits=3)
        note(f"balanced accuracy is {found}, below --min-agreement {short(least, digits=3)}")


def _exit_code(results: dict[str, list[Verdict | Failure]], attention: bool) -> int:
    """As ``memalign judge``: when no item got a verdict, 3 if it may succeed later, else 2."""
    from memalign.records import Failure

    every = [result for verdicts in results.values() for result in verdicts]
    failures = [result for result in every if isinstance(result, Failure)]
    if len(failures) == len(every):
        return 3 if any(failure.retryable for failure in failures) else 2
    return int(attention)
