"""The coach on a terminal: experts mend a reason before it is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import typer

from memalign.cli.printing import note, one_line, progress, say, visible
from memalign.stores import shown

if TYPE_CHECKING:
    from memalign.alignment import Advice
    from memalign.judge import Judge
    from memalign.records import Feedback

_AT_ONCE = 8


class _Stopped(KeyboardInterrupt):
    """Ctrl-C while a record was decided; ``typed`` is the record when its reason was typed anew."""

    def __init__(self, typed: Feedback | None) -> None:
        self.typed = typed


def coached(judge: Judge, records: Sequence[Feedback], *, ask: bool) -> tuple[list[Feedback], list[Advice]]:
    """The records as they are to be stored, and what the coach said; with ``ask``, the expert at the terminal decides, else nothing is changed.

    What memory holds unchanged is not looked at again. A coach that fails, or gives no readable answer, stops nothing: the record is kept as it is.
    Ctrl-C stores what was decided until then, without learning it, and raises KeyboardInterrupt that says how to go on.
    """
    held = judge.memory.newest(record.id for record in records)
    again = {place for place, record in enumerate(records) if ask and _of_other_reason(record, held.get(record.id))}
    fresh = [place for place, record in enumerate(records) if place not in again and not _unchanged(record, held.get(record.id))]
    given = dict(zip(fresh, _advice(judge, [records[place] for place in fresh]), strict=True))
    kept: list[Feedback] = []
    for place, record in enumerate(records):
        advice = given.get(place)
        try:
            if place in again:
                kept += _chosen(judge, record, held[record.id])
            else:
                kept += _mended(judge, record, advice) if ask and advice is not None else [record]
        except KeyboardInterrupt as stopped:
            typed = [stopped.typed] if isinstance(stopped, _Stopped) and stopped.typed else []
            _keep(judge, [*kept, *typed], records[place + len(typed) :], held)
    return kept, [advice for advice in given.values() if advice is not None]


def _unchanged(record: Feedback, held: Feedback | None) -> bool:
    return held is not None and record.teaches_the_same_as(held)


def _of_other_reason(record: Feedback, held: Feedback | None) -> bool:
    return held is not None and not _unchanged(record, held) and _unchanged(replace(record, rationale=held.rationale), held)


def _keep(judge: Judge, decided: Sequence[Feedback], others: Sequence[Feedback], held: Mapping[str, Feedback]) -> NoReturn:
    """Store what was decided, without learning it: who pressed Ctrl-C does not want to wait for models."""
    from memalign.alignment import record

    new = [one for one in decided if not _unchanged(one, held.get(one.id))]
    if not new:
        raise KeyboardInterrupt
    record(judge.memory, new)
    left = sum(not _unchanged(one, held.get(one.id)) for one in others)
    on = f"; {left} record(s) are left: to decide them, run the same command again" if left else ""
    raise KeyboardInterrupt(f"{len(new)} decided record(s) are stored; to learn them, run: memalign align --db {shown(judge.location)}{on}")


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


def _chosen(judge: Judge, record: Feedback, held: Feedback) -> list[Feedback]:
    """What is to be stored where memory holds another reason, such as one that was mended in an earlier run."""
    _show(record)
    try:
        choice = typer.prompt(
            visible(f"  memory holds the reason: {held.rationale or '(none)'}\n  keep [m]emory's or take the [n]ew one"), default="m"
        )
    except typer.Abort:
        raise KeyboardInterrupt from None
    if choice.strip().casefold()[:1] != "n":
        return [held]
    advice = _advice(judge, [record])[0]
    return [record] if advice is None else _mended(judge, record, advice)


def _mended(judge: Judge, record: Feedback, advice: Advice) -> list[Feedback]:
    """The record as the expert wants it stored; empty when it is to be left out."""
    given = record
    _show(record)
    try:
        while not advice.usable:
            say(f"  {line(advice)}")
            choice = typer.prompt("  [k]eep it so, [e]dit the reason, or [s]kip this record", default="k").strip().casefold()[:1]
            if choice == "s":
                return []
            if choice != "e":
                return [record]
            record = replace(record, rationale=_typed(f"  reason [{record.rationale}]", default=record.rationale))
            again = _advice(judge, [record])[0]
            if again is None:
                return [record]
            advice = again
        if advice.question:
            limit = _typed(f"  {advice.question}\n  (when it does not apply; Enter for none)", default="").strip()
            if limit:
                record = replace(record, rationale=f"{record.rationale.rstrip(' .')}. It does not apply when: {limit}")
    except (typer.Abort, KeyboardInterrupt):
        raise _Stopped(None if record is given else record) from None
    return [record]


def _show(record: Feedback) -> None:
    say(f"\n{one_line(str(record.outputs), 200)}\n  verdict {record.value!r}; reason: {record.rationale or '(none)'}")


def _typed(text: str, *, default: str) -> str:
    """What the expert types, once it is valid Unicode, which a store can hold."""
    while True:
        typed = str(typer.prompt(visible(text), default=default, show_default=False))
        try:
            typed.encode()
        except UnicodeEncodeError:
            say("  the terminal sent what is no valid Unicode; please type it again")
        else:
            return typed
