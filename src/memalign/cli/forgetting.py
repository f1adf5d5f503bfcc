"""``memalign purge``, ``memalign memory unalign`` and ``overwrite``: take back what experts no longer stand by."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memalign.cli.options import Actor, AsJson, Database, JudgeName
from memalign.errors import ConfigurationError

if TYPE_CHECKING:
    from memalign.alignment import AlignReport, Withdrawal
    from memalign.alignment.withdrawal import Verb
    from memalign.judge import Judge

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Of the records.")]
Annotator = Annotated[str | None, typer.Option("--annotator", help="Records of this expert.")]
Before = Annotated[str | None, typer.Option("--before", help="Given before this time, as 2026-01-31 or 2026-01-31T12:00.")]
After = Annotated[str | None, typer.Option("--after", help="Given at this time or later.")]
Source = Annotated[str | None, typer.Option("--source", help="Records from this source.")]
Search = Annotated[str | None, typer.Option("--search", help="Records in which this text occurs.")]
Like = Annotated[str | None, typer.Option("--like", help="Records on the items nearest to this text in meaning.")]
Nearest = Annotated[int, typer.Option("--nearest", help="How many items --like means.", min=1)]
Everything = Annotated[bool, typer.Option("--all", help="All records, and all guidelines: what is left is the judge without memory.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be touched.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def unalign(
    db: Database,
    ids: Ids = None,
    annotator: Annotator = None,
    before: Before = None,
    after: After = None,
    source: Source = None,
    search: Search = None,
    like: Like = None,
    nearest: Nearest = 10,
    everything: Everything = False,
    judge: JudgeName = "",
    actor: Actor = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Take cases back; guidelines that are left without evidence retire. They can be given again.

    What is named must hold together. One unknown id, and nothing is changed.
    """
    from memalign.cli.opening import opened

    selection = _selection(ids, annotator, before, after, source, search, like, nearest, everything)
    with opened(db, judge) as found:
        if _agreed(found, "unalign", selection, dry_run=dry_run, sure=yes or bool(ids), json=json):
            _finish(found.unalign(**selection, actor=actor), json=json)


def overwrite(
    db: Database,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Feedback whose ids memory holds: JSONL, CSV or Parquet; - is standard input.")],
    judge: JudgeName = "",
    actor: Actor = "",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Replace cases that memory holds; guidelines that rested on them are distilled again. One bad row or unknown id, and nothing is changed."""
    from memalign.cli.align import read
    from memalign.cli.opening import opened
    from memalign.cli.printing import progress
    from memalign.cli.weights import watched

    with opened(db, judge) as found:
        feedback, _ = read([file], found.scale, strict=True)
        if _agreed(found, "overwrite", {"ids": [record.id for record in feedback]}, dry_run=dry_run, sure=True, json=json):
            with progress() as tell, watched(found, tell):
                report = found.overwrite(feedback, actor=actor, progress=tell)
            _finish(report, json=json)


def purge(
    db: Database,
    ids: Ids = None,
    annotator: Annotator = None,
    before: Before = None,
    after: After = None,
    source: Source = None,
    search: Search = None,
    like: Like = None,
    nearest: Nearest = 10,
    everything: Everything = False,
    expired: Annotated[bool, typer.Option("--expired", help="Records beyond the judge's retention limits.")] = False,
    judge: JudgeName = "",
    actor: Actor = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Delete records for good, with all that came from them.

    All versions, guidelines, vectors and logged verdicts go, from the disk as well; what remains is distilled again. There is no way back.
    What is named must hold together. Exit code 1: something is still to be done, and the next align goes on with it.
    """
    from memalign.cli.opening import opened
    from memalign.cli.printing import progress
    from memalign.cli.weights import watched

    selection = _selection(ids, annotator, before, after, source, search, like, nearest, everything)
    selection |= {"expired": True} if expired else {}
    with opened(db, judge) as found:
        if _agreed(found, "purge", selection, dry_run=dry_run, sure=yes, json=json):
            with progress() as tell, watched(found, tell):
                report = found.purge(**selection, actor=actor, progress=tell)
            _finish(report, json=json)


def _selection(
    ids: list[str] | None,
    annotator: str | None,
    before: str | None,
    after: str | None,
    source: str | None,
    search: str | None,
    like: str | None,
    nearest: int,
    everything: bool,
) -> dict[str, Any]:
    given = {"annotator": annotator, "before": before, "after": after, "source": source, "search": search, "like": like}
    selection: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    selection |= {"nearest": nearest} if like is not None else {}
    selection |= {"everything": True} if everything else {}
    return selection | ({"ids": ids} if ids else {})


def _agreed(judge: Judge, verb: Verb, selection: dict[str, Any], *, dry_run: bool, sure: bool, json: bool) -> bool:
    """Whether to go on: after a dry run no; unless it is sure, the answer of the terminal. Raises ConfigurationError when there is none."""
    from memalign.cli.printing import emit, note, say

    if sure and not dry_run:
        return True
    preview = judge.preview(verb, **selection)
    if dry_run:
        if json:
            emit(preview.to_dict())
        else:
            for line in preview.lines():
                say(line)
        return False
    if not _terminal():
        raise ConfigurationError(f"{verb} would touch {preview.withdrawn} record(s): say --yes, or look first with --dry-run")
    for line in preview.lines():
        note(line)
    if typer.confirm(f"{verb} these {preview.withdrawn} record(s)?", err=True):
        return True
    note("nothing was changed")
    return False


def _terminal() -> bool:
    return sys.stdin.isatty()


def _finish(report: AlignReport | Withdrawal, *, json: bool) -> None:
    from memalign.alignment import AlignReport
    from memalign.cli.printing import emit, say

    if json:
        emit(report.to_dict())
    else:
        for line in report.lines():
            say(line)
    raise typer.Exit(1 if (report.failed_batches if isinstance(report, AlignReport) else not report.complete) else 0)
