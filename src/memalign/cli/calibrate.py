"""``memalign calibrate``: fit how a judge decides."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from memalign.cli.options import Actor, AsJson, Database, JudgeName


def calibrate(
    db: Database,
    judge: JudgeName = "",
    sample: Annotated[int, typer.Option(help="At most so many of the experts' records are judged.", min=1)] = 40,
    actor: Actor = "",
    json: AsJson = False,
) -> None:
    """Fit how a judge decides.

    On the experts' own labels, model and similar cases are weighed against each other. Exit code 1: nothing was fitted.
    """
    from memalign.agreement import short
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, progress, say
    from memalign.cli.weights import watched

    with opened(db, judge) as found, progress() as tell, watched(found, tell):
        result = found.calibrate(sample=sample, actor=actor, progress=tell)
    if json:
        emit(result.to_dict())
    elif result.decision is None:
        say(f"nothing was fitted: {result.note}")
    else:
        weights = ", ".join(f"{name.replace('_', ' ')} {short(value)}" for name, value in asdict(result.decision).items() if isinstance(value, float))
        say(f"revision {result.revision}: {weights}, fitted on {result.judged} records")
        if result.model_alone is not None and result.left_out is not None:
            alone, left_out = short(result.model_alone), short(result.left_out)
            say(f"balanced accuracy on these records: the model alone {alone}, so decided {left_out} (each record left out of its own fit)")
    raise typer.Exit(1 if result.decision is None else 0)
