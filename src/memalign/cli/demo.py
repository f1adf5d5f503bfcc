"""`memalign demo`: the main job on real input, step by step, with everything measured in the run."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from memalign.agreement import Agreement
    from memalign.calibration import Calibration
    from memalign.demo import Change, Correction, Outcome, Stage
    from memalign.records import Failure, Verdict

_JUDGE = "appropriate"
_FILES = ("demo.db", "demo.json", "learning-curve.png")


def demo(
    model: Annotated[
        str, typer.Option(help="The judge: local/... needs no key; openai/... any OpenAI-compatible endpoint.")
    ] = "local/qwen2.5-coder-1.5b",
    feedback: Annotated[int, typer.Option(min=4, max=80, help="Records of feedback, of 80.")] = 80,
    unseen: Annotated[
        int | None,
        typer.Option(min=4, max=48, help="Unseen items on which agreement is measured; by default as many as this machine's speed allows."),
    ] = None,
    seen: Annotated[int, typer.Option(min=2, max=80, help="Seen items that are judged again.")] = 4,
    out: Annotated[Path, typer.Option(help="Folder for the memory, the plot and the numbers.")] = Path("demo-out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead of the story.")] = False,
) -> None:
    """Teach a judge a shop's house rules from its lead's corrections, and measure what it learned. Five minutes on two cores, no key."""
    from rich.console import Console

    from memalign import Judge, Scale, plots
    from memalign.demo import INSTRUCTIONS, run

    plots.require()
    console = Console(highlight=False, emoji=False, quiet=as_json)
    _cleared(out)
    judge = Judge(_JUDGE, INSTRUCTIONS, Scale.boolean(), model, memory=str(out / "demo.db"))
    story = _Story(console, out)
    console.print(f"[bold]The judge[/]  {INSTRUCTIONS}\n[dim]{_plain(model)}, without memory; what the shop's lead means by it, it cannot know.[/]")
    try:
        with _progress() as progress:
            outcome = run(judge, feedback=feedback, unseen=unseen, seen=seen, tell=story.tell, progress=_Bars(progress))
    finally:
        judge.close()
    (out / "demo.json").write_text(json.dumps(outcome.to_dict(), indent=2, ensure_ascii=False), encoding="utf-8")
    _curve(outcome, out / "learning-curve.png")
    story.end(outcome)
    if as_json:
        typer.echo(json.dumps(outcome.to_dict(), ensure_ascii=False))


def _cleared(out: Path) -> None:
    """Make room in a folder: what an earlier demo left there goes. Raises ConfigurationError where anything may be of somebody else."""
    from memalign.errors import ConfigurationError

    try:
        out.mkdir(parents=True, exist_ok=True)
        there = [name for name in _FILES if (out / name).exists()]
        if there and not _left_by_a_demo(out / "demo.db"):
            raise ConfigurationError(f"{out} holds {there[0]}, which no demo left there or which was changed since; name another folder with --out")
        leftovers = [*out.glob("demo.db-index-*"), *(out / f"demo.db{end}" for end in ("-wal", "-shm", ""))] if there else []
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot use the folder {out}: {error.strerror or error}; name another one with --out") from error


def _left_by_a_demo(database: Path) -> bool:
    """Whether the demo made this memory, and nobody changed it afterwards."""
    from memalign.demo import ACTOR, INSTRUCTIONS
    from memalign.errors import PermanentError
    from memalign.memory import Memory, judge_names, judge_settings
    from memalign.stores import open_store

    if not database.exists():
        return False
    try:
        with closing(open_store(str(database))) as store:
            if judge_names(store) != [_JUDGE]:
                return False
            settings = judge_settings(store, _JUDGE)
            history = Memory(store, _JUDGE, settings, settings["embedder"]).history()
    except PermanentError:
        return False
    return settings["instructions"] == INSTRUCTIONS and all(revision.actor == ACTOR for revision in history)


class _Story:
    """Tells each step as it ends."""

    def __init__(self, console: Console, out: Path) -> None:
        self._console = console
        self._out = out
        self._stages: list[Stage] = []

    def tell(self, step: str, result: Any) -> None:
        """Print one step."""
        getattr(self, f"_{step}")(result)

    def end(self, outcome: Outcome) -> None:
        """Print the curve and the account."""
        say = self._console.print
        say("\n[bold]Learning curve[/]  balanced accuracy on unseen items")
        for stage in outcome.stages:
            value = stage.agreement.balanced_accuracy
            if value is not None:
                say(f"  {stage.records:3d} records  [green]{'█' * round(value.value * 40):40s}[/] {value}")
        usage = outcome.usage
        read, cached = usage.prompt_tokens, usage.cached_tokens
        say(
            f"\n[bold]Cost of all this[/]  {usage.calls} calls, {read:,} prompt tokens ({cached:,} of them from the prefix cache), "
            f"{usage.completion_tokens:,} written, {usage.embedded_texts} texts embedded; $0.00; {outcome.seconds:.0f} s"
            if outcome.model.startswith("local/")
            else f"\n[bold]Cost of all this[/]  {usage.calls} calls, {read:,} + {usage.completion_tokens:,} tokens; {outcome.seconds:.0f} s"
        )
        out = _plain(str(self._out))
        say(f"[dim]{out}/: learning-curve.png, demo.json with every number, and the memory itself. Look around:\n")
        say(f"  memalign memory list --db {out}/demo.db\n  memalign memory history --db {out}/demo.db")

    def _stage(self, stage: Stage) -> None:
        self._stages.append(stage)
        title = "Before any feedback" if stage.records == 0 else f"After {stage.records} records"
        self._console.print(f"\n[bold]{title}[/]  on items it has not seen")
        self._agreement(stage.agreement)

    def _agreement(self, agreement: Agreement) -> None:
        for line in agreement.lines():
            self._console.print(f"  {_plain(line)}")

    def _aligned(self, report: Any) -> None:
        self._console.print("\n[bold]Aligned[/]")
        for line in report.lines():
            self._console.print(f"  {_plain(line)}")

    def _calibrated(self, calibration: Calibration) -> None:
        if calibration.decision is None or calibration.model_alone is None or calibration.left_out is None:
            self._console.print(f"  nothing fitted: {_plain(calibration.note)}")
            return
        self._console.print(
            f"  model and cases weighed on {calibration.judged} of the lead's labels, own cases hidden: balanced accuracy there "
            f"{calibration.left_out:.2f} (left out), {calibration.model_alone:.2f} by the model alone"
        )
        if calibration.note:
            self._console.print(f"  {_plain(calibration.note)}")

    def _test(self, test: Any) -> None:
        self._console.print(f"  against no feedback: {test.fixed} verdicts mended, {test.broken} broken (exact McNemar p = {test.p_value:.2f})")

    def _changes(self, changes: list[Change]) -> None:
        say, said = self._console.print, {True: "send it", False: "do not send it"}
        say("\n[bold]Verdicts that changed[/]")
        for change in changes:
            say(f"  [italic]{_plain(change.item.inputs['customer'])}[/]\n  > {_plain(change.item.outputs)}")
            say(f"    before {_said(change.before)}, now {_said(change.after)}; the lead: {said[change.item.value]}")
            if change.case is not None:
                record = change.case.feedback
                told = f"{_plain(record.outputs)} [dim]{_plain(record.rationale)}[/]"
                say(f"    the case that spoke most for it, {record.id} ({said[record.value]}): {told}")
            if change.guideline is not None:
                whence = "distilled from it" if change.distilled else "nearest to this reply"
                say(f"    the guideline {whence}, {change.guideline.id}: {_plain(change.guideline.text)}")
            if change.model_alone is not None:
                say(f"    the model by itself says yes with p = {change.model_alone:.2f}")

    def _seen(self, agreement: Agreement) -> None:
        self._console.print("\n[bold]On items that the lead has judged[/]  corrected cases stay corrected")
        self._agreement(agreement)

    def _correction(self, correction: Correction) -> None:
        self._console.print("\n[bold]A live correction[/]  the lead changes her mind")
        self._console.print(f"  > {_plain(correction.old.outputs)}\n  [italic]{_plain(correction.new.rationale)}[/]")
        self._console.print(f"  before {_said(correction.before)}, now {_said(correction.after)}, {correction.report.seconds:.0f} s later")
        for line in correction.report.lines()[2:]:
            self._console.print(f"  {_plain(line)}")


class _Bars:
    """One progress bar a stage of work."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: Any = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the bar."""
        if stage != self._stage or self._task is None:
            self._task, self._stage = self._progress.add_task(stage, total=total), stage
        self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self._progress.remove_task(self._task)
            self._task = None


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True
    )


def _plain(text: str) -> str:
    """What data and models say, to stand among rich's markup: neither markup nor control characters of theirs act."""
    from rich.markup import escape

    from memalign.cli.printing import visible

    return escape(visible(text))


def _said(verdict: Verdict | Failure) -> str:
    value = getattr(verdict, "value", None)
    if value is None:
        return _plain(f"failed ({getattr(verdict, 'error', '')})")
    confidence = getattr(verdict, "confidence", None)
    return ("yes" if value else "no") + (f" ({confidence:.2f})" if confidence is not None else "")


def _curve(outcome: Outcome, path: Path) -> None:
    from memalign.plots import Point, learning_curve, save_png

    points = [Point(stage.records, stage.agreement.balanced_accuracy) for stage in outcome.stages if stage.agreement.balanced_accuracy is not None]
    subtitle = f"{outcome.model}, {outcome.stages[0].agreement.n} unseen items, 95 % bootstrap interval"
    save_png(learning_curve(points, title="What the experts' feedback taught the judge", subtitle=subtitle), path)
