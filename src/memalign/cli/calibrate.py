"""``memalign calibrate``: fit how a judge decides."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memalign.cli.options import Actor, AsJson, Database, JudgeName

if TYPE_CHECKING:
    from memalign.calibration import Calibration
    from memalign.memory.revisions import Decision
    from memalign.reliability import Reliability
    from memalign.scale import Scale

_BAR = 20


def calibrate(
    db: Database,
    judge: JudgeName = "",
    sample: Annotated[int, typer.Option(help="At most so many of the experts' records are judged.", min=1)] = 40,
    votes: Annotated[
        int | None, typer.Option(help="For a model that tells no token probabilities: count so many replies, here and from now on.", min=1)
    ] = None,
    ablate: Annotated[
        bool | None,
        typer.Option(
            "--ablate/--no-ablate",
            help="Judge the records without guidelines too, and let the model read guidelines only if that helps; by default for models in process.",
        ),
    ] = None,
    agreement: Annotated[float, typer.Option(help="Tell from which confidence on verdicts agree with the experts so often.", min=0.01, max=1)] = 0.9,
    plot: Annotated[Path | None, typer.Option(help="Write the reliability diagram and the coverage curve to this PNG file.")] = None,
    actor: Actor = "",
    json: AsJson = False,
) -> None:
    """Fit how a judge decides, and how far its confidence can be relied on.

    On the experts' own labels, each judged without its own case, model and similar cases are weighed against each other; what does not help takes
    no part. Every figure "as fitted" is on records that were left out of the fit. Exit code 1: nothing was fitted.
    """
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, note, progress
    from memalign.cli.weights import watched

    if plot is not None:
        from memalign.plots import require

        require()
    with opened(db, judge) as found, progress() as tell, watched(found, tell):
        result = found.calibrate(sample=sample, votes=votes, ablate=ablate, actor=actor, progress=tell)
    if json:
        covered = result.coverage_at(agreement)
        emit({**result.to_dict(), "wanted_agreement": agreement, "covered": None if covered is None else covered.to_dict()})
    else:
        _show(found.scale, result, agreement)
    if plot is not None and result.before is not None and result.after is not None:
        from memalign.plots import reliability_diagram, save_png

        save_png(reliability_diagram(result.before, result.after, title=f"Judge {found.name!r}: confidence and agreement with the experts"), plot)
        note(f"wrote {plot}")
    raise typer.Exit(1 if result.decision is None else 0)


def _show(scale: Scale, result: Calibration, agreement: float) -> None:
    from memalign.agreement import short
    from memalign.cli.printing import say

    if result.decision is None or result.before is None or result.after is None:
        say(f"nothing was fitted: {result.note}")
        return
    say(f"revision {result.revision}: {_weights(scale, result.decision)}; fitted on {result.judged} records, each judged without its own case")
    _figures(result.before, result.after)
    if result.note:
        say(f"note: {result.note}")
    say("")
    _diagram(result.after)
    covered = result.coverage_at(agreement)
    if covered is None:
        say(f"no confidence reaches an agreement of {short(agreement)} on these records")
        return
    below = max((point.threshold for point in result.after.curve if point.threshold < covered.threshold), default=-1.0)
    say(
        f"for an agreement of {short(agreement)}: --abstain-below {_at_least(covered.threshold, below)} keeps {covered.coverage:.0%} of the verdicts "
        f"({covered.n} of {result.after.n}) with accuracy {covered.agreement}"
    )


def _at_least(threshold: float, below: float) -> str:
    """A threshold cut down to three digits, or to as many as keep it above the next confidence ``below`` it."""
    for digits in range(3, 20):
        cut = Decimal(threshold).quantize(Decimal(10) ** -digits, ROUND_FLOOR)
        if float(cut) > below:
            break
    return f"{cut:f}".rstrip("0").rstrip(".")


def _weights(scale: Scale, decision: Decision) -> str:
    from memalign.agreement import short

    parts = [f"model weight {short(decision.model_weight)}", f"vote weight {short(decision.vote_weight)}"]
    if any(decision.offsets) and len(scale.labels) <= 7:
        parts += [f"{label} {number:+.2f}" for label, number in zip(scale.labels, decision.offsets, strict=True)]
    return ", ".join(parts)


def _figures(before: Reliability, after: Reliability) -> None:
    from memalign.agreement import short
    from memalign.cli.printing import table

    names = {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "mae": "mean absolute error",
        "mae_expected": "that of the mean",
        "brier": "Brier score",
        "ece": "calibration error",
        "log_loss": "log loss",
    }
    known = [name for name in names if getattr(after, name) is not None]
    rows = [[title, *(short(getattr(kind, name), digits=3) for name in known)] for title, kind in (("model alone", before), ("as fitted", after))]
    table(["", *(names[name] for name in known)], rows)


def _diagram(found: Reliability) -> None:
    """The reliability diagram for a terminal: a full bar is always right, the mark is where the confidence lies."""
    from memalign.agreement import short
    from memalign.cli.printing import table

    rows = []
    for part in found.bins:
        cells = ["█" if place < round(part.right.value * _BAR) else "·" for place in range(_BAR)]
        cells[min(_BAR - 1, int(part.confidence * _BAR))] = "|"
        rows.append([f"{short(part.low, digits=1)}-{short(part.high, digits=1)}", part.n, short(part.confidence), part.right, "".join(cells)])
    table(["confidence", "n", "mean", "right (95 % interval)", "right █, confidence |"], rows)
