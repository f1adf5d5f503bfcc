"""``memalign judge``: verdicts for the items of a file, or for one item."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memalign.cli.options import AbstainBelow, Database, JudgeName, Retrieve, Votes
from memalign.errors import ConfigurationError

if TYPE_CHECKING:
    from memalign.cli.results import Put
    from memalign.files import ItemRow
    from memalign.judge import Judge
    from memalign.records import Failure, Item, Verdict
    from memalign.rows import RowProblem

    Results = Callable[[Iterable[Item]], AsyncIterator[tuple[int, Verdict | Failure]]]

_SHORT = 300


@dataclass(slots=True)
class Tally:
    """What came of the rows of a run."""

    verdicts: int = 0
    failures: int = 0
    retryable: int = 0
    bad_rows: int = 0
    known: int = 0
    abstained: int = 0
    """Of the verdicts, those that are a best guess and left to the experts."""
    last_error: str = ""

    @property
    def exit_code(self) -> int:
        """0: every row has a verdict, be it an abstention; 1: some have none; when no item got one, 3 if the same command may help later, else 2."""
        if self.failures and not self.verdicts + self.known:
            return 3 if self.retryable else 2
        return 1 if self.failures or self.bad_rows else 0

    def line(self) -> str:
        """A short account."""
        parts = {
            "judged": self.verdicts,
            "of them abstained": self.abstained,
            "failed": self.failures,
            "bad rows skipped": self.bad_rows,
            "done before": self.known,
        }
        return ", ".join(f"{count} {name}" for name, count in parts.items() if count or name == "judged")


def judge(
    db: Database,
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="Items as JSONL, CSV or Parquet; - is JSONL on standard input.")] = None,
    judge: JudgeName = "",
    out: Annotated[str | None, typer.Option(help="Write results to this file, one JSON line an item; else to standard output.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip the rows that have a verdict in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start --out anew if it exists.")] = False,
    inputs: Annotated[str | None, typer.Option(help="Judge one item in place of a file: its inputs (text, or a JSON object or list).")] = None,
    outputs: Annotated[str | None, typer.Option(help="The outputs of the one item.")] = None,
    expectations: Annotated[str | None, typer.Option(help="The expectations of the one item.")] = None,
    abstain_below: AbstainBelow = None,
    votes: Votes = None,
    retrieve: Retrieve = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document: the verdict on one item, or the account of a run with --out.")
    ] = False,
) -> None:
    """Judge the items of a file, or one item.

    Results of a FILE are one JSON line an item, with --json or without, written as they come, in the order in which they come. A verdict with
    "abstained": true is the judge's best guess on an item that it leaves to the experts.

    Exit code 0: every row has a verdict, abstentions included; 1: some have none. When none got one: 3 if it may succeed later, else 2.
    """
    from memalign.cli.opening import opened
    from memalign.cli.printing import emit, note
    from memalign.cli.retrieving import retrieving

    single = not (inputs is None and outputs is None and expectations is None)
    if single == (file is not None):
        raise ConfigurationError("give a FILE of items, or one item by --inputs and --outputs" + (", not both" if single else ""))
    if resume and overwrite:
        raise ConfigurationError("--resume goes on with the results in --out, --overwrite starts them anew: give one of the two")
    with opened(db, judge) as stored:
        found = retrieving(stored, retrieve)
        if single:
            if out or resume or overwrite:
                raise ConfigurationError("--out, --resume and --overwrite are for a FILE of items")
            item = {"inputs": _cell(inputs), "outputs": _cell(outputs), "expectations": _cell(expectations)}
            _judge_one(found, item, abstain_below, votes, json=json)
            return
        results = partial(found.astream, abstain_below=abstain_below, votes=votes)
        tally = _judge_file(found, results, str(file), out, resume=resume, overwrite=overwrite)
    to_file = out not in (None, "-")
    if json and to_file:
        emit(asdict(tally))
    if tally.exit_code or tally.abstained or to_file:
        note(tally.line() + (f"; the last failure: {tally.last_error}" if tally.last_error else ""))
    raise typer.Exit(tally.exit_code)


def _judge_file(judge: Judge, results: Results, file: str, out: str | None, *, resume: bool, overwrite: bool) -> Tally:
    from memalign import edge
    from memalign.cli.printing import progress
    from memalign.cli.results import writing
    from memalign.cli.weights import watched
    from memalign.files import iter_items

    tally = Tally()
    entries: Iterator[ItemRow | RowProblem] = iter_items(file)
    # Standard input is read first: the event loop must not wait for who writes there. A file that cannot be read must leave `out` alone.
    entries = chain(list(entries if file == "-" else islice(entries, 1)), entries)
    with writing(out, items=file, resume=resume, overwrite=overwrite) as (put, done):
        total = _rows(file) if sys.stderr.isatty() and file != "-" else 0
        rows = _good(entries, file, done, tally)
        if out in (None, "-") and sys.stdout.isatty():  # results and a bar on one screen would mix
            edge.run(_stream(results, rows, put, tally, lambda: None))
            return tally
        with progress() as tell, watched(judge, tell):
            edge.run(_stream(results, rows, put, tally, lambda: tell("judge", tally.verdicts + tally.failures + tally.known, total)))
    return tally


def _good(entries: Iterable[ItemRow | RowProblem], file: str, done: set[Any], tally: Tally) -> Iterator[ItemRow]:
    """The rows that are still to be judged; bad ones are reported."""
    from memalign.cli.printing import report_problem
    from memalign.cli.results import key_of
    from memalign.rows import RowProblem

    for entry in entries:
        if isinstance(entry, RowProblem):
            report_problem(file, entry)
            tally.bad_rows += not entry.warning
        elif key_of(entry) in done:
            tally.known += 1
        else:
            yield entry


async def _stream(judged: Results, rows: Iterator[ItemRow], put: Put, tally: Tally, tell: Callable[[], None]) -> None:
    from memalign.cli.results import line_of
    from memalign.records import Failure

    under_way: dict[int, ItemRow] = {}

    def items() -> Iterator[Item]:
        for place, row in enumerate(rows):
            under_way[place] = row
            yield row.item

    async with aclosing(judged(items())) as results:  # type: ignore[type-var]
        async for place, result in results:
            put(line_of(under_way.pop(place), result))
            if isinstance(result, Failure):
                tally.failures += 1
                tally.retryable += result.retryable
                tally.last_error = result.error
            else:
                tally.verdicts += 1
                tally.abstained += result.abstained
            tell()


def _rows(file: str) -> int:
    from memalign.files import ItemRow, iter_items

    return sum(isinstance(entry, ItemRow) for entry in iter_items(file))


def _judge_one(judge: Judge, item: dict[str, Any], abstain_below: float | None, votes: int | None, *, json: bool) -> None:
    from memalign.cli.printing import emit, progress
    from memalign.cli.weights import watched

    with progress() as tell, watched(judge, tell):
        verdict = judge(**item, abstain_below=abstain_below, votes=votes)
    if json:
        emit(verdict.to_dict())
    else:
        _show(judge, verdict)


def _show(judge: Judge, verdict: Verdict) -> None:
    from memalign.agreement import short
    from memalign.cli.printing import one_line, say
    from memalign.rendering import item_text

    sure = "" if verdict.confidence is None else f" (confidence {short(verdict.confidence)})"
    left = "; it abstains: this is its best guess, ask an expert" if verdict.abstained else ""
    say(f"verdict: {judge.scale.label_of(verdict.value)}{sure}{left}")
    if verdict.expected is not None:
        say(f"mean score: {short(verdict.expected)}")
    if verdict.orders is not None and verdict.orders[0] != verdict.orders[1]:
        say(f"the two orders disagree: {judge.scale.label_of(verdict.orders[0])} as given, {judge.scale.label_of(verdict.orders[1])} when swapped")
    if verdict.rationale:
        say(f"rationale: {verdict.rationale}")
    if verdict.id:
        say(f"id: {verdict.id} (memalign memory explain tells later what it rests on)")
    guidelines = {guideline.id: guideline.text for guideline in judge.memory.guidelines(all_states=True)}
    if verdict.guideline_ids:
        say("guidelines:")
    for key in verdict.guideline_ids:
        say(f"  {key}  {guidelines.get(key, '(withdrawn meanwhile)')}")
    cases = {
        "cases shown, the most similar first:": verdict.episode_ids[::-1],
        "cases that carried the vote, the strongest first:": verdict.voter_ids,
    }
    episodes = {episode.feedback.id: episode.feedback for episode in judge.memory.episodes()} if any(cases.values()) else {}
    for title, ids in cases.items():
        if ids:
            say(title)
        for key in ids:
            if key not in episodes:
                say(f"  {key}  (withdrawn meanwhile)")
                continue
            case = episodes[key]
            why = f" {one_line(case.rationale, _SHORT)}" if case.rationale else ""
            say(f"  {key}  {one_line(item_text(case.item), _SHORT)}")
            say(f"      expert: {judge.scale.label_of(case.value)}.{why}")
    cost = "" if verdict.cost_usd is None else f", ${verdict.cost_usd:.4f}"
    tokens = f"{verdict.usage.prompt_tokens:,} + {verdict.usage.completion_tokens:,} tokens"
    say(f"revision {verdict.revision}, {tokens}{cost}, {verdict.seconds:.1f} s")


def _cell(text: str | None) -> Any:
    """An option's text, read as JSON when it is an object or a list, as in CSV files."""
    if text is None or not text.lstrip().startswith(("{", "[")):
        return text
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text
