"""The command line: ``memalign`` and its commands. Heavy parts are imported inside the commands, so that help comes at once."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from memalign import __version__
from memalign.cli import align, calibrate, db, demo, doctor, evaluate, forgetting, init, judge, memory, port, suggest
from memalign.errors import ConfigurationError, MemalignError

INTERRUPTED = 130


class _Group(TyperGroup):
    """Turns what memalign raises, and Ctrl-C, into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        json = "--json" in ctx.args  # the arguments of the command
        try:
            _check_text(ctx.args)
            with warnings.catch_warnings():
                warnings.showwarning = _warned
                return super().invoke(ctx)
        except MemalignError as error:
            if os.environ.get("MEMALIGN_DEBUG") == "1":
                raise
            raise typer.Exit(_told(error, json=json)) from None
        except (KeyboardInterrupt, typer.Abort) as stopped:
            print(f"\ninterrupted: {str(stopped) or 'nothing is lost, run the same command again'}", file=sys.stderr)  # noqa: T201
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="memalign",
    cls=_Group,
    help="Align an LLM judge with what experts say, through a memory that learns from their feedback.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: loading rich would take longer than all the rest
    pretty_exceptions_enable=False,
)
app.command("demo", short_help="See what a judge learns from feedback.")(demo.demo)
app.command("init")(init.init)
app.command("align")(align.align)
app.command("judge")(judge.judge)
app.command("eval")(evaluate.evaluate)
app.command("calibrate", short_help="Fit how a judge decides, and its confidence.")(calibrate.calibrate)
app.command("purge", short_help="Delete records for good.")(forgetting.purge)
app.command("suggest", short_help="Rank items by what labelling them would teach.")(suggest.suggest)
app.command("export", short_help="Write a memory to one file.")(port.export)
app.command("import", short_help="Bring in an exported memory.")(port.import_)
app.command("doctor")(doctor.doctor)
app.add_typer(db.app, name="db", short_help="Look after the database that a memory lies in.")
app.add_typer(memory.app, name="memory", short_help="Look at what a judge learned, or take back.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"memalign {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False) -> None:
    pass


def main() -> None:
    """Run the console script."""
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)  # without waiting for threads: a model in process may be reading for half a minute
        raise


def _warned(message: Warning | str, *_: Any, **__: Any) -> None:
    """Say what a user has to know, without the line of code that a warning names."""
    from memalign.cli.printing import note

    note(f"warning: {message}")


def _check_text(arguments: list[str]) -> None:
    """Raises ConfigurationError for an argument whose bytes are no text."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise ConfigurationError(f"the argument {argument!r} is not valid UTF-8; retype it, or set the terminal to UTF-8") from error


def _told(error: MemalignError, *, json: bool) -> int:
    """Say what went wrong, with ``json`` on standard output as well; gives the exit code: 3 when the same command may succeed later, else 2."""
    from memalign.cli.printing import emit, note

    note(f"error: {error}")
    if json:
        emit({"error": str(error), "kind": type(error).__name__, "retryable": error.retryable}, indent=None)
    return 3 if error.retryable else 2
