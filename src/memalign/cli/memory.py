"""``memalign memory``: look at what a judge learned, and take back what experts no longer stand by."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memalign.cli.accept import accept
from memalign.cli.guidelines import add, edit, pin, retire, unpin
from memalign.cli.options import Actor, AsJson, Database, JudgeName
from memalign.cli.past import diff, explain, rollback
from memalign.cli.questions import answer, questions
from memalign.cli.show import show
from memalign.cli.utility import utility
from memalign.errors import NotFound

if TYPE_CHECKING:
    from memalign.alignment import AlignReport
    from memalign.memory.revisions import Revision
    from memalign.records import Episode

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
def history(db: Database, judge: JudgeName = "", json: AsJson = False) -> None:
    """List all changes of memory, oldest first."""
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, say, table

    with opened(db, judge) as found:
        changes = found.memory.history()
    if json:
        emit([asdict(change) for change in changes])
    elif changes:
        rows = [[c.number, c.at[:19].replace("T", " "), c.actor, *_what(c)] for c in changes]
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


def _what(change: Revision) -> tuple[str, str]:
    """The verb and the counts of a change, for readers."""
    counts = dict(change.counts)
    verb = f"rollback to {counts.pop('to')}" if change.verb == "rollback" else change.verb
    return verb, ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _episode(episode: Episode) -> dict[str, Any]:
    return {**asdict(episode.feedback), "judged": episode.judged, "stored_at": episode.stored_at}


app.command()(show)
app.command()(diff)
app.command()(rollback)
app.command()(explain)
app.command()(questions)
app.command()(answer)
app.command()(accept)
app.command()(utility)
for verb in (pin, unpin, edit, add, retire):
    app.command()(verb)
