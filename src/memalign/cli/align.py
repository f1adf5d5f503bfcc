"""``memalign align``: teach a judge."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from memalign.cli.options import Actor, AsJson, Database, JudgeName, Verify

if TYPE_CHECKING:
    from memalign.alignment import Advice, Mode
    from memalign.records import Feedback
    from memalign.scale import Scale


def align(
    db: Database,
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="JSONL, CSV or Parquet; - is JSONL on standard input.")] = None,
    judge: JudgeName = "",
    actor: Actor = "",
    strict: Annotated[bool, typer.Option("--strict", help="Learn nothing when any row is bad.")] = False,
    coach: Annotated[
        bool, typer.Option("--coach", help="First ask of each new reason whether it is usable; on a terminal, mend it before it is stored.")
    ] = False,
    verify: Verify = "",
    override: Annotated[bool, typer.Option("--override", help="Let guidelines stand that verification refuses.")] = False,
    screen: Annotated[
        bool | None,
        typer.Option("--screen/--no-screen", help="Judge each new item first, so that errors lead distillation; by default with --verify full."),
    ] = None,
    html: Annotated[str, typer.Option(metavar="PATH", help="Write the report as a web page, too.")] = "",
    json: AsJson = False,
) -> None:
    """Learn from experts' feedback.

    Without a FILE, take up what an earlier run could not finish.
    With --verify, records are judged again without and with the new guidelines: what breaks right verdicts, or fixes no wrong one, is kept as a
    candidate that the judge does not read. Bad rows are reported and left out.
    With --coach on a terminal, Ctrl-C stores what was decided until then; align without a FILE learns it, the same command goes on.

    Exit code 1: rows were left out, some records could not be learned yet, or expired ones not purged for good.
    """
    from memalign.cli.coaching import coached, line
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, progress, say
    from memalign.cli.report import show, write_page
    from memalign.cli.weights import watched

    _check(html, verify)
    with opened(db, judge) as found:
        feedback, problems = read(files or [], found.scale, strict=strict)
        panel = None if found.scale.kind == "open" else found.panel(feedback)
        for text in [] if json or panel is None else panel.lines():
            say(text)
        advice: list[Advice] = []
        if coach:
            dialogue = not json and sys.stdin.isatty() and sys.stdout.isatty()
            feedback, advice = coached(found, feedback, ask=dialogue)
            for unusable in [] if json or dialogue else [said for said in advice if not said.usable]:
                say(line(unusable))
        with progress() as tell, watched(found, tell):
            mode = cast("Mode", verify) if verify else None
            report = found.align(feedback, verify=mode, override=override, screen=screen, actor=actor, progress=tell)
    if json:
        experts = None if panel is None else panel.to_dict()
        emit({**report.to_dict(), "problems": problems, "experts": experts, "advice": [found.to_dict() for found in advice]})
    else:
        show(report, db)
    if html:
        write_page(report, html)
    skipped = any(not problem["warning"] for problem in problems)
    unlearned = bool(report.failed_batches or report.note) or report.verification.outcome == "undone"
    raise typer.Exit(1 if skipped or unlearned else 0)


def _check(html: str, verify: str) -> None:
    """Before anything is done, least of all an expert asked. Raises ConfigurationError."""
    from memalign.errors import ConfigurationError

    if html and not Path(html).parent.is_dir():
        raise ConfigurationError(f"--html {html}: the folder {Path(html).parent} does not exist; create it first")
    if verify not in ("", "off", "fast", "full"):
        raise ConfigurationError(f"--verify {verify} is not known; known: 'off', 'fast', 'full'")


def read(files: list[str], scale: Scale, *, strict: bool = False) -> tuple[list[Feedback], list[dict[str, Any]]]:
    """The good rows of some files, and the problems of the others, which are also reported on standard error.

    Raises ConfigurationError for a file that cannot be read and, when ``strict``, BadRecord for a bad row.
    """
    from memalign.cli.printing import problem_dict, report_problems
    from memalign.errors import BadRecord
    from memalign.files import Seen, read_feedback

    feedback: list[Feedback] = []
    problems: list[dict[str, Any]] = []
    seen: Seen = {}
    for file in dict.fromkeys(files):
        result = read_feedback(file, scale, seen=seen)
        report_problems(file, result.problems)
        problems += [problem_dict(file, problem) for problem in result.problems]
        feedback += result.records
    bad = sum(not problem["warning"] for problem in problems)
    if strict and bad:
        raise BadRecord(f"{bad} bad row(s) and --strict: nothing was stored; mend them and run the same command again")
    return feedback, problems
