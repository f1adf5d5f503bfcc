"""The coach on a terminal: experts mend a reason before it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from memalign.cli.printing import note, one_line, progress, say

if TYPE_CHECKING:
    from memalign.alignment import Advice
    from memalign.judge import Judge
    from memalign.records import Feedback

_AT_ONCE = 8


def coached(judge: Judge, records: Sequence[Feedback], *, ask: bool) -> tuple[list[Feedback], list[Advice]]:
    """The records as they are to be stored, and what the coach said; with ``ask``, the expert at the terminal decides, else nothing is changed.

    What memory holds unchanged is not looked at again. A coach that fails, or gives no readable answer, stops nothing: the record is kept as it is.
    """
    held = judge.memory.newest(record.id for record in records)
    fresh = [place for place, record in enumerate(records) if record.id not in held or not record.says_the_same_as(held[record.id])]
    given = dict(zip(fresh, _advice(judge, [records[place] for place in fresh]), strict=True))
    kept: list[Feedback] = []
    for place, record in enumerate(records):
        advice = given.get(place)
        kept += _mended(judge, record, advice) if ask and advice is not None else [record]
    return kept, [advice for advice in given.values() if advice is not None]


def _advice(judge: Judge, records: Sequence[Feedback]) -> list[Advice | None]:
    from memalign import edge
    from memalign.engines import in_flight
    from memalign.errors import MemalignError

    found: list[Advice | None] = [None] * len(records)

    async def one(record: Feedback) -> Advice | None:
        try:
            return await judge.acoach(record)
        except MemalignError as error:
            note(f"no advice on {record.id}: {error}")
            return None

    with progress() as tell:

        async def every() -> None:
            done = 0
            async for place, advice in in_flight(records, one, limit=_AT_ONCE):
                found[place] = advice
                done += 1
                tell("coach", done, len(records))

        edge.run(every())
    return found


def line(advice: Advice) -> str:
    """What keeps a reason from being usable, on one line."""
    against = f" {advice.contradicts}" if advice.contradicts else ""
    return f"{advice.feedback_id}: {advice.problem}{against}: {advice.message}"


def _mended(judge: Judge, record: Feedback, advice: Advice) -> list[Feedback]:
    """The record as the expert wants it stored; empty when it is to be left out."""
    say(f"\n{one_line(str(record.outputs), 200)}\n  verdict {record.value!r}; reason: {record.rationale or '(none)'}")
    while not advice.usable:
        say(f"  {line(advice)}")
        choice = typer.prompt("  [k]eep it so, [e]dit the reason, or [s]kip this record", default="k").strip().casefold()[:1]
        if choice == "s":
            return []
        if choice != "e":
            return [record]
        record = replace(record, rationale=typer.prompt("  reason", default=record.rationale))
        again = _advice(judge, [record])[0]
        if again is None:
            return [record]
        advice = again
    if advice.question:
        limit = typer.prompt(f"  {advice.question}\n  (when it does not apply; Enter for none)", default="", show_default=False).strip()
        if limit:
            record = replace(record, rationale=f"{record.rationale.rstrip(' .')}. It does not apply when: {limit}")
    return [record]
