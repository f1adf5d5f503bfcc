"""``memalign memory``: look at what a judge learned, and take back what experts no longer stand by."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memalign.cli.options import Actor, AsJson, Database, JudgeName
from memalign.errors import NotFound

if TYPE_CHECKING:
    from memalign.alignment import AlignReport
    from memalign.judge import Judge
    from memalign.records import Episode, Guideline

app = typer.Typer(help="Look at what a judge learned, and take back what experts no longer stand by.", no_args_is_help=True, rich_markup_mode=None)

_SHORT = 160


@app.command("list")
def list_(
    db: Database,
    judge: JudgeName = "",
    episodes: Annotated[bool, typer.Option("--episodes", help="List the experts' cases as well.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List retired and other inactive guidelines as well.")] = False,
    json: AsJson = False,
) -> None:
    """List the guidelines, and how many cases memory holds."""
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, one_line, say, table
    from memalign.rendering import item_text

    with opened(db, judge) as found:
        guidelines = found.memory.guidelines(all_states=every)
        held = found.memory.episodes()
        revision, waiting = found.memory.view().revision, found.memory.waiting()
    counts = {"revision": revision, "guidelines": len(guidelines), "episodes": len(held), "items": len({e.feedback.item.id for e in held})}
    counts["waiting"] = waiting
    if json:
        cases = {"cases": [_episode(episode) for episode in held]} if episodes else {}
        emit({"judge": found.name, "counts": counts, "guidelines": [asdict(guideline) for guideline in guidelines]} | cases)
        return
    if guidelines:
        rows = [[g.id, g.text, len(g.evidence_for), len(g.evidence_against), g.state, "yes" if g.pinned else ""] for g in guidelines]
        table(["id", "guideline", "for", "against", "state", "pinned"], rows, wide=["guideline"])
    if episodes and held:
        cells = [
            [
                e.feedback.id,
                found.scale.label_of(e.feedback.value),
                one_line(e.feedback.rationale, _SHORT),
                one_line(item_text(e.feedback.item), _SHORT),
            ]
            for e in held
        ]
        table(["id", "expert", "reason", "item"], cells, wide=["reason", "item"])
    say(f"revision {revision}: {len(guidelines)} guideline(s), {len(held)} case(s) on {counts['items']} item(s)")
    if waiting:
        say(f"{waiting} record(s) are stored but not fully learned; to go on, run: memalign align")


@app.command()
def show(
    key: Annotated[str, typer.Argument(metavar="ID", help="Of a guideline or a case.")], db: Database, judge: JudgeName = "", json: AsJson = False
) -> None:
    """Show a guideline with the cases for and against it, or a case with the guidelines that rest on it."""
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit

    with opened(db, judge) as found:
        guidelines = {guideline.id: guideline for guideline in found.memory.guidelines(all_states=True)}
        held = {episode.feedback.id: episode for episode in found.memory.episodes()}
    if key in guidelines:
        guideline = guidelines[key]
        if json:
            emit({"guideline": asdict(guideline), "cases": [_episode(held[case]) for case in _cases(guideline) if case in held]})
        else:
            _show_guideline(found, guideline, held)
        return
    matches = [key] if key in held else [case for case in held if case.startswith(key)]
    if len(matches) != 1:
        told = f"{len(matches)} cases begin with it: give more of the id" if matches else "see: memalign memory list --episodes"
        raise NotFound(f"no guideline or case {key!r} in judge {found.name!r}; {told}")
    resting = [guideline for guideline in guidelines.values() if matches[0] in _cases(guideline)]
    if json:
        emit({"case": _episode(held[matches[0]]), "guidelines": [asdict(guideline) for guideline in resting]})
    else:
        _show_case(found, held[matches[0]], resting)


@app.command()
def history(db: Database, judge: JudgeName = "", json: AsJson = False) -> None:
    """List all changes of memory, oldest first."""
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, say, table

    with opened(db, judge) as found:
        changes = found.memory.history()
    if json:
        emit([asdict(change) for change in changes])
    elif changes:
        rows = [[c.number, c.at[:19].replace("T", " "), c.actor, c.verb, ", ".join(f"{v} {k}" for k, v in c.counts.items() if v)] for c in changes]
        table(["revision", "time (UTC)", "who", "verb", "what"], rows, wide=["what"])
    else:
        say("nothing has changed memory yet")


@app.command()
def unalign(
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Of the cases to take back.")],
    db: Database,
    judge: JudgeName = "",
    actor: Actor = "",
    json: AsJson = False,
) -> None:
    """Take cases back; guidelines that are left without evidence retire. One unknown id, and nothing is changed."""
    from memalign.cli.opening import opened

    with opened(db, judge) as found:
        report = found.unalign(ids, actor=actor)
    _report(report, json=json)


@app.command()
def overwrite(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Feedback whose ids memory holds: JSONL, CSV or Parquet; - is standard input.")],
    db: Database,
    judge: JudgeName = "",
    actor: Actor = "",
    json: AsJson = False,
) -> None:
    """Replace cases that memory holds; guidelines that rested on them are distilled again. One bad row or unknown id, and nothing is changed."""
    from memalign.cli.align import read
    from memalign.cli.opening import opened
    from memalign.cli.printing import progress
    from memalign.cli.weights import watched

    with opened(db, judge) as found:
        feedback, _ = read([file], found.scale, strict=True)
        held = {episode.feedback.id for episode in found.memory.episodes()}
        unknown = [record.id for record in feedback if record.id not in held]
        if unknown:
            listed = ", ".join(map(repr, unknown[:5])) + (" ..." if len(unknown) > 5 else "")
            raise NotFound(
                f"{len(unknown)} of {len(feedback)} records are not in judge {found.name!r}: {listed}; nothing was changed (align adds new ones)"
            )
        with progress() as tell, watched(found, tell):
            report = found.align(feedback, actor=actor, progress=tell)
    _report(report, json=json)


def _report(report: AlignReport, *, json: bool) -> None:
    from memalign.cli.printing import emit, say

    if json:
        emit(report.to_dict())
    else:
        for line in report.lines():
            say(line)
    raise typer.Exit(1 if report.failed_batches else 0)


def _show_guideline(judge: Judge, guideline: Guideline, held: dict[str, Episode]) -> None:
    from memalign.cli.printing import say

    pinned = ", pinned" if guideline.pinned else ""
    say(f"{guideline.id} (version {guideline.version}, {guideline.state}{pinned})")
    say(guideline.text)
    for title, cases in (("for", guideline.evidence_for), ("against", guideline.evidence_against)):
        if cases:
            say(f"{title}:")
        for case in cases:
            _show_episode(judge, case, held.get(case))


def _show_case(judge: Judge, episode: Episode, resting: list[Guideline]) -> None:
    from memalign.cli.printing import say
    from memalign.rendering import item_text

    feedback = episode.feedback
    say(f"case {feedback.id}: {judge.scale.label_of(feedback.value)}" + (f", by {feedback.annotator}" if feedback.annotator else ""))
    say(item_text(feedback.item))
    if feedback.rationale:
        say(f"reason: {feedback.rationale}")
    if episode.judged is not None:
        say(f"the judge had said: {judge.scale.label_of(episode.judged)}")
    where = f" from {feedback.source}" if feedback.source else ""
    say(f"given {feedback.created_at:%Y-%m-%d %H:%M}{where}")
    say("guidelines that rest on it:" if resting else "no guideline rests on it")
    for guideline in resting:
        sign = "for" if feedback.id in guideline.evidence_for else "against"
        say(f"  {guideline.id}  ({sign}, {guideline.state})  {guideline.text}")


def _show_episode(judge: Judge, key: str, episode: Episode | None) -> None:
    from memalign.cli.printing import one_line, say
    from memalign.rendering import item_text

    if episode is None:
        say(f"  {key}  (withdrawn)")
        return
    reason = one_line(episode.feedback.rationale, _SHORT)
    say(f"  {key}  {judge.scale.label_of(episode.feedback.value)}{': ' + reason if reason else ''}")
    say(f"      {one_line(item_text(episode.feedback.item), _SHORT)}")


def _cases(guideline: Guideline) -> tuple[str, ...]:
    return guideline.evidence_for + guideline.evidence_against


def _episode(episode: Episode) -> dict[str, Any]:
    return {**asdict(episode.feedback), "judged": episode.judged, "stored_at": episode.stored_at}
