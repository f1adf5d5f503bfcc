"""Processes that align, judge, retract and purge one memory, killed at random: ``python -m benchmarks.crashes [--kills 200] [--postgres]``.

Eight workers share a memory in a file, or on a PostgreSQL server of the harness's own. Every moment one of them, chosen at random, gets SIGKILL,
wherever it is, and another takes its place. What memory promised to a worker stands in the worker's notes, which a kill cannot touch. After each kill
and at the end the promises are checked:

- the database is sound (integrity check, references);
- no half of a change can be seen: revisions are without gaps, no row is of a revision that is not there, one version of an id holds, and what
  holds in revision n is the same whenever it is read;
- no accepted feedback is lost: what ``align`` returned for, or what was once seen in the file, is there until somebody takes it back;
- nothing that was purged comes back: no row holds its phrase, and at the end no byte of the files does (of the server's: but for its log of changes);
- the next ``align`` takes up the rest, and nothing waits any more.

The model is scripted, with short pauses in which a kill can strike. Writes ``benchmarks/results/crashes.json``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.measuring import ROOT, facts
from memalign import Feedback, Judge, MemalignError, Scale
from memalign.embedders.scripted import HashEmbedder
from memalign.models import ChatRequest
from memalign.models.scripted import ScriptedChatModel
from memalign.stores import open_store

if TYPE_CHECKING:
    from pgserving import Server

WORKERS = 8
_CASE = re.compile(r"^Case (\d+)$.*?^Expert: [^.\n]+\.[ ]?([^\n]*)$", re.MULTILINE | re.DOTALL)
_HELD = "until IS NULL"


def judge_on(path: str, pause: random.Random | None = None) -> Judge:
    """The judge of all workers. Its guidelines repeat the reasons, planted phrases included, so that a purge has something to find."""

    def answer(request: ChatRequest) -> Mapping[str, Any]:
        if pause is not None:
            time.sleep(pause.uniform(0.0, 0.04))
        if request.purpose == "judge":
            return {"rationale": "As the house rules say.", "verdict": "yes"}
        if request.purpose == "distil":
            cases = _CASE.findall(request.messages[-1].content)
            return {
                "operations": [
                    {"op": "add", "when": "a reply is judged", "decide": f"heed {reason}", "because": "", "cases": [int(number)]}
                    for number, reason in cases
                ]
            }
        return {"groups": [], "relations": []}

    return Judge("crash", "Is the reply good?", Scale.boolean(), ScriptedChatModel(answer), memory=path, embedder=HashEmbedder(16), floor=0.0, k=2)


def feedback(worker: str, number: int, version: int = 1) -> Feedback:
    """A record with a phrase of its own in what is judged and in the reason; a pure function of its arguments."""
    phrase = phrase_of(worker, number, version)
    return Feedback(
        id=f"{worker}-{number}",
        inputs=f"question {number} of {worker}",
        outputs=f"reply {number} of {worker}, {phrase}",
        value=bool((number + version) % 2),
        rationale=f"Mind the {phrase}." if number % 3 else "",
        annotator=worker,
    )


def phrase_of(worker: str, number: int, version: int = 1) -> str:
    """A word that occurs nowhere else."""
    return f"zq{worker}x{number}v{version}qz"


# A worker


def work(path: str, notes: str, worker: str, seed: int) -> None:
    """Go on until killed. What was asked and what was promised is noted, each line in one write."""
    luck = random.Random(seed)
    with Path(notes).open("ab", buffering=0) as book:

        def note(kind: str, verb: str, ids: list[str], version: int = 1) -> None:
            book.write(json.dumps({"kind": kind, "verb": verb, "ids": ids, "version": version}).encode() + b"\n")

        judge, made, held = judge_on(path, luck), 0, dict[int, int]()
        while True:
            verb = luck.choices(("align", "judge", "overwrite", "unalign", "purge"), (5, 3, 2, 1, 2))[0]
            if verb not in ("align", "judge") and not held:
                continue
            if verb == "align":
                numbers = list(range(made, made + luck.randint(1, 3)))
                made += len(numbers)
            else:
                numbers = [] if verb == "judge" else [luck.choice(list(held))]
            version = held[numbers[0]] + 1 if verb == "overwrite" else 1
            ids = [f"{worker}-{number}" for number in numbers]
            note("asked", verb, ids, version)
            try:
                if verb == "judge":
                    judge.batch([feedback(worker, luck.randint(0, made + 3)).item for _ in range(3)])
                elif verb in ("align", "overwrite"):
                    judge.align([feedback(worker, number, version) for number in numbers], actor=worker)
                else:
                    getattr(judge, verb)(ids, actor=worker)
            except MemalignError as error:
                note("failed", f"{verb}: {type(error).__name__}: {error}"[:300], ids, version)
                continue
            note("done", verb, ids, version)
            for number in numbers:
                held[number] = version
                if verb in ("unalign", "purge"):
                    del held[number]


# The promises


class Promises:
    """What the notes of all workers say."""

    def __init__(self, folder: Path) -> None:
        self.accepted: dict[str, int] = {}
        """Record -> the version that align returned for."""
        self.in_doubt: set[str] = set()
        """Records of which a verb was asked that did not return: both outcomes are right."""
        self.purged: set[str] = set()
        """Phrases of records whose purge returned."""
        self.asked: Counter[str] = Counter()
        """How often something was asked about a record."""
        self.done = 0
        self.errors: list[str] = []
        versions: dict[str, int] = {}
        for book in sorted(folder.glob("*.notes")):
            for line in book.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    self._take(json.loads(line), versions)

    def _take(self, line: Mapping[str, Any], versions: dict[str, int]) -> None:
        verb, ids = line["verb"], line["ids"]
        if line["kind"] == "failed":
            self.errors.append(verb)
        for key in ids:
            versions[key] = max(versions.get(key, 0), line["version"] if verb in ("align", "overwrite") else 0)
            if line["kind"] == "asked":
                self.asked[key] += 1
                self.in_doubt.add(key)
            elif line["kind"] == "done":
                self.in_doubt.discard(key)
                self.accepted.pop(key, None)
                if verb in ("align", "overwrite"):
                    self.accepted[key] = line["version"]
                elif verb == "purge":
                    worker, number = key.rsplit("-", 1)
                    self.purged |= {phrase_of(worker, int(number), version) for version in range(1, versions[key] + 1)}
        self.done += line["kind"] == "done"


Query = Callable[..., Sequence[Any]]
"""A statement, with ? for each value behind it, to its rows."""


class Base(Protocol):
    """The database under the workers, seen past memalign."""

    location: str

    def looking(self) -> Any:
        """A context with a ``Query`` on one consistent snapshot."""

    def damage(self) -> list[str]:
        """What the database finds wrong with itself."""

    def files(self) -> Mapping[str, bytes]:
        """All that it keeps, by name."""


class File:
    """A database in a file."""

    def __init__(self, path: Path) -> None:
        self.location = str(path)

    @contextmanager
    def looking(self) -> Iterator[Query]:
        """One snapshot."""
        with closing(sqlite3.connect(f"file:{self.location}?mode=ro", uri=True, timeout=60)) as base:
            base.execute("BEGIN")
            yield lambda statement, *values: base.execute(statement, values).fetchall()

    def damage(self) -> list[str]:
        """Of pages, indexes and references."""
        with self.looking() as query:
            faults = [f"integrity: {row[0]}" for row in query("PRAGMA integrity_check") if row[0] != "ok"]
            return faults + [f"reference: {row}" for row in query("PRAGMA foreign_key_check")]

    def files(self) -> Mapping[str, bytes]:
        """The file, and what lies beside it under its name."""
        path = Path(self.location)
        return {each.name: each.read_bytes() for each in path.parent.glob(f"{path.name}*")}


class Served:
    """A database on a PostgreSQL server."""

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self.location = server.make(name)

    @contextmanager
    def looking(self) -> Iterator[Query]:
        """One snapshot."""
        import psycopg

        with psycopg.connect(self.location, options="-c search_path=memalign") as base:
            base.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            yield lambda statement, *values: base.execute(statement.replace("?", "%s"), values).fetchall()

    def damage(self) -> list[str]:
        """Of pages, indexes and references."""
        with closing(open_store(self.location)) as store:
            return store.faults()

    def files(self) -> Mapping[str, bytes]:
        """A dump, and the server's files without its log of changes."""
        return {"pg_dump": self._server.dump(self.location), **{str(path): path.read_bytes() for path in self._server.files(self.location)}}


def broken(base: Base, folder: Path, seen: dict[str, str], remembered: dict[int, str]) -> list[str]:
    """The promises of the notes in a folder that do not hold now. ``seen`` and ``remembered`` carry over what earlier looks found."""
    faults, promises = base.damage(), Promises(folder)
    with base.looking() as query:
        numbers = [row[0] for row in query("SELECT number FROM revision ORDER BY number")]
        if numbers != list(range(1, len(numbers) + 1)):
            faults.append(f"revisions have gaps: {numbers}")
        for table in ("feedback", "guideline"):
            beyond = query(f"SELECT count(*) FROM {table} WHERE coalesce(since, 0) > ? OR coalesce(until, 0) > ?", len(numbers), len(numbers))[0][0]
            if beyond:
                faults.append(f"{beyond} rows of {table} belong to a revision that is not there")
            twice = query(f"SELECT id FROM {table} WHERE since IS NOT NULL AND {_HELD} GROUP BY id HAVING count(*) > 1")
            faults += [f"two versions of {table} {row[0]} hold" for row in twice]
        unsupported = query(
            f"SELECT g.id FROM guideline g WHERE g.{_HELD} AND g.state = 'active' AND NOT EXISTS (SELECT 1 FROM evidence e JOIN feedback f"
            f" ON f.row = e.feedback_row WHERE e.guideline_row = g.row AND e.sign > 0 AND f.{_HELD})"
        )
        faults += [f"guideline {row[0]} is active without evidence that holds" for row in unsupported]
        asked = Promises(folder).asked  # whoever is alive goes on while we look
        promises.in_doubt |= {key for key, times in asked.items() if times != promises.asked[key]}
        faults += _lost(query, promises, seen)
        texts = "\n".join(row[0] for table, columns in _TEXTS for row in query(f"SELECT {columns} FROM {table}"))
        faults += [f"a purged phrase is back: {phrase}" for phrase in promises.purged if phrase in texts]
        faults += _rewritten(query, len(numbers), remembered)
    return faults


_TEXTS = (
    ("feedback", "inputs || outputs || expectations || rationale || id"),
    ("guideline", "text || scope"),
    ("verdict", "rationale || episode_ids"),
    ("draft", "content"),
)


def _lost(query: Query, promises: Promises, seen: dict[str, str]) -> Iterator[str]:
    newest = {
        key: (outputs, rationale) for key, outputs, rationale in query(f"SELECT id, outputs, rationale FROM feedback WHERE {_HELD} ORDER BY version")
    }
    for key, version in promises.accepted.items():
        if key in promises.in_doubt:
            continue
        worker, number = key.rsplit("-", 1)
        said = feedback(worker, int(number), version)
        if key not in newest:
            yield f"accepted feedback {key} is lost"
        elif (json.loads(newest[key][0]), newest[key][1]) != (said.outputs, said.rationale):
            yield f"accepted feedback {key} reads otherwise"
    for key in seen:
        taken_back = key not in promises.accepted
        if key not in newest and not taken_back and key not in promises.in_doubt:
            yield f"feedback {key} was in the file and is gone"
    seen.clear()
    seen.update(dict.fromkeys(newest, ""))


def _rewritten(query: Query, newest: int, remembered: dict[int, str]) -> Iterator[str]:
    """Whether a revision reads as it did before, but for what a purge took out of it since."""
    purges = [row[0] for row in query("SELECT number FROM revision WHERE verb IN ('purge', 'expire') ORDER BY number")]
    last = purges[-1] if purges else 0
    for number in [known for known in remembered if known <= last]:
        del remembered[number]
    for number in {newest, *random.Random(newest).sample(sorted(remembered), min(3, len(remembered)))}:
        held = "WHERE since <= ? AND (until IS NULL OR until > ?) ORDER BY 1, 2"
        records = query(f"SELECT id, version FROM feedback {held}", number, number)
        rules = query(f"SELECT id, version, state FROM guideline {held}", number, number)
        now = repr((records, rules))
        if remembered.setdefault(number, now) != now:
            yield f"revision {number} reads otherwise than before"


# The harness


def run(kills: int, *, base: Base, seed: int, workers: int = WORKERS, folder: Path, longest_seconds: float) -> dict[str, Any]:
    """Kill so many times, checking after each; then let one process finish. ``folder``: for the workers' notes. Gives what was found."""
    luck = random.Random(seed)
    with closing(judge_on(base.location)) as judge:
        judge.align([])
    fork = multiprocessing.get_context("fork")  # the children start at once, with everything imported and nothing opened
    crew: list[Any] = []
    started, faults, killed, born = time.monotonic(), list[str](), 0, 0
    seen: dict[str, str] = {}
    remembered: dict[int, str] = {}
    verbs_hit: dict[str, int] = {}

    def spawn() -> None:
        nonlocal born
        born += 1
        worker = f"w{born}"
        process = fork.Process(target=work, args=(base.location, str(folder / f"{worker}.notes"), worker, seed * 100_000 + born), name=worker)
        process.start()
        crew.append(process)

    for _ in range(workers):
        spawn()
    while killed < kills and not faults and time.monotonic() - started < longest_seconds:
        time.sleep(luck.uniform(0.05, 1.5))
        victim = crew.pop(luck.randrange(len(crew)))
        if not victim.is_alive():
            faults.append(f"worker {victim.name} ended by itself with {victim.exitcode}")
            break
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        killed += 1
        last = (folder / f"{victim.name}.notes").read_bytes().splitlines()[-1:] if (folder / f"{victim.name}.notes").exists() else []
        state = json.loads(last[0]) if last else {"kind": "starting", "verb": "starting"}
        during = state["verb"] if state["kind"] == "asked" else "between two verbs" if last else "starting"
        verbs_hit[during] = verbs_hit.get(during, 0) + 1
        spawn()
        faults = [f"after kill {killed}: {fault}" for fault in broken(base, folder, seen, remembered)]
    for process in crew:
        process.kill()
        process.join()
    faults = faults or [f"after all kills: {fault}" for fault in broken(base, folder, seen, remembered)]
    waited, left, faults = _finished(base, folder, faults)
    promises = Promises(folder)
    return {
        "kills": killed,
        "workers": workers,
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "killed_during": dict(sorted(verbs_hit.items())),
        "verbs_done": promises.done,
        "records_accepted": len(promises.accepted),
        "records_purged": len({phrase.rsplit("v", 1)[0] for phrase in promises.purged}),
        "revisions": _count(base, "revision"),
        "verdicts_logged": _count(base, "verdict"),
        "waiting_when_all_were_dead": waited,
        "waiting_after_the_next_align": left,
        "errors_told_to_workers": sorted({error[:160] for error in promises.errors}),
        "faults": faults,
    }


def _finished(base: Base, folder: Path, faults: list[str]) -> tuple[int, int, list[str]]:
    """What the next process finds and does: align takes up the rest, and the bytes of what was purged are gone."""
    with closing(judge_on(base.location)) as judge:
        waited = judge.memory.waiting()
        report = judge.align()
    found = list(faults)
    if report.unconsumed or report.failed_batches:
        found.append(f"the next align left {report.unconsumed} records, {len(report.failed_batches)} batches failed")
    found += [f"at the end: {fault}" for fault in broken(base, folder, {}, {})]
    held = base.files()
    for phrase in sorted(Promises(folder).purged):
        found += [f"the bytes of {name} hold the purged phrase {phrase}" for name, data in held.items() if phrase.encode() in data]
    return waited, report.unconsumed, found


def _count(base: Base, table: str) -> int:
    with base.looking() as query:
        return int(query(f"SELECT count(*) FROM {table}")[0][0])


@contextmanager
def own_server() -> Iterator[Server]:
    """The server that the tests use."""
    sys.path.insert(0, str(ROOT / "tests"))
    from pgserving import served

    with served() as server:
        yield server


def main() -> int:
    """Run, print, write. Exit code 1: a promise was broken; the folder with database and notes is kept and named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0, help="at most")
    parser.add_argument("--postgres", action="store_true", help="on a PostgreSQL server instead of a file")
    parser.add_argument("--json", action="store_true", help="only print the result; nothing is written")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="memalign-crashes-"))
    with own_server() if options.postgres else nullcontext() as server:
        base: Base = File(folder / "memory.db") if server is None else Served(server, "crashes")
        found = run(options.kills, base=base, seed=options.seed, workers=options.workers, folder=folder, longest_seconds=options.seconds)
    if found["faults"]:
        print(f"kept for a look: {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    print(json.dumps(found, indent=None if options.json else 1))
    if not options.json:
        results = ROOT / "benchmarks" / "results" / "crashes.json"
        known = json.loads(results.read_text()) if results.exists() else {}
        known["PostgreSQL" if options.postgres else "SQLite"] = {"machine": facts(), **found}
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps(known, indent=1) + "\n")
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
