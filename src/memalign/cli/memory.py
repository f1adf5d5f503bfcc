"""``memalign memory``: look at what a judge learned, and take back what experts no longer stand by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memalign.cli.accept import accept
from memalign.cli.audit import audit, what
from memalign.cli.forgetting import overwrite, unalign
from memalign.cli.guidelines import add, edit, pin, retire, unpin
from memalign.cli.index import index
from memalign.cli.options import AsJson, Database, JudgeName
from memalign.cli.past import diff, explain, rollback
from memalign.cli.questions import answer, questions
from memalign.cli.show import show
from memalign.cli.utility import utility
from memalign.stores import shown

if TYPE_CHECKING:
    from memalign.records import Episode

app = typer.Typer(help="Look at what a judge learned, and take back what experts no longer stand by.", no_args_is_help=True, rich_markup_mode=None)

_SHORT = 160


@app.command("list", short_help="List the guidelines, and how many cases memory holds.")
def list_(
    db: Database,
    judge: JudgeName = "",
    episodes: Annotated[bool, typer.Option("--episodes", help="List the experts' cases as well.")] = False,
    every: Annotated[bool, typer.Option("--all", help="List retired and other inactive guidelines as well.")] = False,
    json: AsJson = False,
) -> None:
    """List the guidelines, and how many cases memory holds.

    The judge reads active guidelines alone. A candidate stands by: more useful ones fill the budget, or it was not proven. One in quarantine is
    contradicted, and the experts are asked (memory questions). A superseded one gave way to another; a retired one lost its evidence, or an
    expert took it out.
    """
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, one_line, say, still_to_embed, table
    from memalign.description import model_name
    from memalign.rendering import item_text

    with opened(db, judge) as found:
        guidelines = found.memory.guidelines(all_states=every)
        held = found.memory.episodes()
        view, waiting, embedded = found.memory.view(), found.memory.waiting(), found.memory.embedded()
        embedder = found.memory.embedder
        unread = not view.decision.of(model_name(found.model)).guidelines and any(not guideline.pinned for guideline in view.guidelines)
    revision = view.revision
    counts = {"revision": revision, "guidelines": len(guidelines), "episodes": len(held), "items": len({e.item_id for e in held})}
    counts |= {"waiting": waiting, "to_embed": embedded.lacking}
    if json:
        cases = {"cases": [_episode(episode) for episode in held]} if episodes else {}
        told = {"judge": found.name, "counts": counts, "weights": found.weights}
        emit(told | {"guidelines": [asdict(guideline) for guideline in guidelines]} | cases)
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
    if found.weights:
        weighed = [f"{name or '(unnamed)'} {weight:g}" for name, weight in found.weights.items()]
        say(f"weights of annotators (others 1): {', '.join(weighed)}")
    if unread:
        say("the model reads only the pinned ones: calibration found that reading the others does not help it (memory pin, or calibrate --no-ablate)")
    if waiting:
        say(f"{waiting} record(s) are stored but not fully learned; to go on, run: memalign align --db {shown(db)}")
    if embedded.lacking:
        say(f"{still_to_embed(embedder, embedded)}; to do it now, run: memalign memory index --db {shown(db)}")


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
        rows = [[c.number, c.at[:19].replace("T", " "), c.actor, *what(c)] for c in changes]
        table(["revision", "time (UTC)", "who", "verb", "what"], rows, wide=["what"])
    else:
        say("nothing has changed memory yet")


def _episode(episode: Episode) -> dict[str, Any]:
    return {**asdict(episode.feedback), "judged": episode.judged, "stored_at": episode.stored_at}


_VERBS: dict[Callable[..., None], str] = {  # what a terminal of 80 columns has room for
    show: "Show a guideline or a case, and what it rests on.",
    diff: "Show what distinguishes two revisions.",
    rollback: "Go back to a revision, as a new one.",
    explain: "Show on what a logged verdict rests.",
    questions: "List what only the experts can decide.",
    answer: "Decide between guidelines that contradict.",
    accept: "Let the judge read a guideline that was refused.",
    utility: "Measure what each guideline is worth.",
    pin: "Keep a guideline whatever alignment finds.",
    unpin: "Let alignment change a guideline again.",
    edit: "Replace a guideline's text, and pin it.",
    add: "Add a guideline in your own words.",
    retire: "Take a guideline out of judging.",
    unalign: "Take cases back.",
    overwrite: "Replace cases that memory holds.",
    audit: "Show who changed memory, when and how much.",
    index: "Make the file that opens a large memory at once.",
}
for verb, short_help in _VERBS.items():
    app.command(short_help=short_help)(verb)
