"""``memalign doctor``: what works here, what does not, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from memalign.cli.options import AsJson, JudgeName
from memalign.errors import ConfigurationError

if TYPE_CHECKING:
    from memalign.cli.checks import Check


def doctor(
    model: Annotated[
        str | None, typer.Option(help="Ask this model, provider/model, one tiny question. A hosted one may cost a fraction of a cent.")
    ] = None,
    embedder: Annotated[str | None, typer.Option(help="Embed two texts with this embedder.")] = None,
    db: Annotated[str | None, typer.Option("--db", envvar="MEMALIGN_DB", help="Check this memory.")] = None,
    models: Annotated[
        bool, typer.Option("--models/--no-models", help="Without --model and --embedder: try the in-process defaults, if installed.")
    ] = True,
    profile: Annotated[
        bool, typer.Option("--profile", help="Of the judge in --db: where a judgement's time goes. It judges up to 13 items that memory holds.")
    ] = False,
    judge: JudgeName = "",
    json: AsJson = False,
) -> None:
    """Check this installation.

    No hosted endpoint is called unless --model or --embedder names one, or --profile asks the judge's.

    Exit code 1: something that was asked for does not work.
    """
    from memalign.cli import checks, probes
    from memalign.cli.printing import emit, progress

    if profile:
        _profile(db, judge, json=json)
        return
    found = [checks.python(), checks.package(), checks.sqlite(), checks.machine(), checks.settings()]
    found += [checks.packages(name) for name in checks.optional_parts()]
    found += [*checks.weights(), checks.key(), checks.address()]
    if db is not None:
        found += checks.database(db)
    with progress() as tell:
        if model is not None:
            found += probes.chat(model, tell)
        elif models and embedder is None:
            found += probes.default_chat(tell)
        if embedder is not None:
            found += probes.embedder(embedder)
        elif models and model is None:
            found += probes.default_embedder()
    good = not any(check.needed and check.status != "ok" for check in found)
    if json:
        emit({"ok": good, "checks": [asdict(check) for check in found]})
    else:
        _show(found, [check.name for check in found if check.status != "ok" and (check.needed or check.name.startswith("judge "))])
    raise typer.Exit(0 if good else 1)


def _profile(db: str | None, judge: str, *, json: bool) -> None:
    from memalign.cli import profile
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, progress, say

    if db is None:
        raise ConfigurationError("--profile needs the memory of a judge: --db FILE")
    with opened(db, judge) as found, progress() as tell:
        figures = profile.profile(found, progress=tell)
    if json:
        emit(figures)
    else:
        for line in profile.lines(figures):
            say(line)


def _show(checks: list[Check], broken: list[str]) -> None:
    from memalign.cli.printing import say

    width = max(len(check.name) for check in checks)
    for check in checks:
        advice = f"; {check.advice}" if check.advice else ""
        say(f"{check.status:<8}{check.name:<{width}}  {check.detail}{advice}")
    say("")
    say(f"to be mended: {', '.join(broken)}" if broken else "all that is needed works; what is missing is optional")
