"""What judging reads of a memory: the view of a revision, the cases that resemble an item, and the vote of the cases."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from memalign.errors import MemalignError, StoreError
from memalign.memory import episodic, identity, log, replays, revisions, semantic, vectors, vote
from memalign.memory.episodic import Stored
from memalign.memory.exemplars import Candidate, choose
from memalign.memory.journal import Entry, Journal
from memalign.memory.scrubbing import scrub
from memalign.memory.search import Search
from memalign.memory.view import Cases, View
from memalign.memory.vote import Ballot
from memalign.records import Episode, Feedback, Item, Verdict
from memalign.rendering import search_text
from memalign.retrieval import Retrieval
from memalign.scale import Scale
from memalign.stores import Store, schema

if TYPE_CHECKING:
    from memalign.embedders import Vectors


_MOST_CANDIDATES = 2000
"""Newest items among which exemplars are chosen."""

_REMEMBERED_ITEMS = 10_000
"""Items whose cases are kept in RAM, some 2 kB each: reading five of them takes a third of what a judgement adds."""


class Lookup:
    """The readers' side of one judge's memory. Safe for threads; changes made by other processes are seen at the next call."""

    def __init__(
        self,
        store: Store,
        name: str,
        settings: Mapping[str, Any],
        embedder: str,
        *,
        exemplars: int = 0,
        revision: int | None = None,
        retrieval: Retrieval | None = None,
    ) -> None:
        """``retrieval``: in place of what the settings say."""
        self._store = store
        self._journal = Journal(store)
        self.name = name
        self.embedder = embedder
        self.pinned_revision = revision
        self._exemplars = exemplars
        self._settings = settings
        self._chosen_by = retrieval
        self._retrieval = Retrieval.from_dict(settings.get("retrieval") or {}) if retrieval is None else retrieval
        self._search = Search(store, self.scale, embedder, self._retrieval, kept=revision is None and retrieval is None)
        self.purged = 0
        """The newest purge that this reader has followed."""
        self._view: View | None = None
        self._ballots: tuple[int, Ballot | None] | None = None
        self._remembered: tuple[int, OrderedDict[str, tuple[Episode, ...]]] = (0, OrderedDict())
        """What was read for judgements of one revision."""
        self._lock = threading.RLock()

    @property
    def store(self) -> Store:
        """Where it lies; all that was logged is in it."""
        self._journal.flush()
        return self._store

    def close(self) -> None:
        """Write what waits, stop what works in the background and give back the store's connections."""
        try:
            self._journal.close()
        finally:  # a warning may be an error
            self.rest()
            self._store.close()

    def rest(self) -> None:
        """Stop what works in the background."""
        self._search.close()

    def keep_index(self) -> bool:
        """Make the file of the search index now, on a server its graph; False where there is nothing to keep, or another process is making it.

        Raises StoreError.
        """
        self.view()
        try:
            return self._search.keep()
        except OSError as error:
            raise StoreError(f"the search index beside {self._store.location} cannot be written ({error}); judging goes on without it") from error

    def drop_index(self) -> int:
        """Forget the search index in RAM and delete its files or, on a server, graphs; gives how many there were."""
        judge_id = self.judge_id
        with self._lock:
            self._view = self._ballots = None
            return self._search.drop(judge_id)

    def view(self) -> View:
        """What holds now (or in the pinned revision); the search index follows it."""
        judge_id = self.judge_id
        with self._lock, self._store.reading() as connection:
            newest, purged = revisions.standing(connection, judge_id)
            self._drop_purged(purged)
            return self._viewed(connection, newest if self.pinned_revision is None else self.pinned_revision)

    @property
    def swift(self) -> bool:
        """Whether ``unchanged``, ``cases`` and ``vote`` take a millisecond or two and wait for nobody, so that they need no thread of their own."""
        return self._store.near and self._search.swift

    def unchanged(self, content_hash: str) -> tuple[View, Vectors | None] | None:
        """As ``view_and_vector``, by one query; None when memory has changed since its last view."""
        newest, purged, vector = vectors.newest_and_one(self._store.fetch, self.judge_id, self.embedder, content_hash)
        view, wanted = self._view, newest if self.pinned_revision is None else self.pinned_revision
        return (view, vector) if view is not None and view.revision == wanted and self.purged == purged else None

    def view_and_vector(self, content_hash: str) -> tuple[View, Vectors | None]:
        """The view, and the stored vector of a text if there is one."""
        judge_id = self.judge_id
        with self._lock, self._store.reading() as connection:
            newest, purged, vector = vectors.newest_and_one(lambda *query: connection.execute(*query).all(), judge_id, self.embedder, content_hash)
            self._drop_purged(purged)
            return self._viewed(connection, newest if self.pinned_revision is None else self.pinned_revision), vector

    def cases(self, view: View, item_id: str, query: Vectors | None, *, k: int, floor: float, own: bool, item: Item | None = None) -> Cases:
        """The k most similar items' episodes, and with ``own`` those of the item itself, as they hold in the view's revision.

        ``item``: for a search by words, where the settings ask for it.
        """
        near = self._search.nearest(query, k, floor=floor, exclude=item_id, item=item) if query is not None else []
        own = own and item_id in self._search
        ranked = dict(reversed(near)) | ({item_id: 1.0} if own else {})
        if not ranked:
            return Cases(episodes=(), similarity=())
        told = self._told(view, list(ranked))
        return Cases(
            episodes=tuple(episode for item_id in ranked for episode in told[item_id]),
            similarity=tuple(score for item_id, score in ranked.items() for _ in told[item_id]),
        )

    def vote(self, view: View, item: Item, query: Vectors, *, own: bool) -> tuple[tuple[float, ...], tuple[str, ...]]:
        """What the experts' verdicts on similar items say of an item (see ``vote.support``), and the ids of the records that carried it."""
        ballot = self.ballot(view)
        if ballot is None:
            return (), ()
        value, item_ids = ballot.count(item.id, query, search_text(item), own=own)
        told = self._told(view, item_ids)
        return value, tuple(episode.feedback.id for voter in item_ids for episode in told[voter])

    def logged(self, item_ids: Sequence[str]) -> dict[str, float]:
        """Item id -> the confidence of the last verdict on it in service, where there was one that had a confidence."""
        self._journal.flush()
        with self._reading() as (connection, revision):
            return log.confidences(connection, self.judge_id, item_ids, revision)

    def item_vectors(self, item_ids: Sequence[str]) -> dict[str, Vectors]:
        """Item id -> vector, for those items that the index of the last view holds."""
        with self._lock:
            return {item_id: self._search.vector(item_id) for item_id in item_ids if item_id in self._search}

    def known_vectors(self, hashes: Sequence[str]) -> dict[str, Vectors]:
        """Content hash -> vector, for those already stored."""
        with self._store.reading() as connection:
            return vectors.known(connection, self.embedder, hashes)

    def lacking(self) -> list[str]:
        """Content hashes of what memory holds but the present embedder has not seen."""
        with self._reading() as (connection, revision):
            return vectors.missing(connection, self.judge_id, self.embedder, revision)

    def texts(self, hashes: Sequence[str]) -> dict[str, str]:
        """Content hash -> text, of those hashes that records hold and that still have no vector."""
        with self._reading() as (connection, revision):
            unknown = set(hashes) - set(vectors.known(connection, self.embedder, hashes))
            found = episodic.of_texts(connection, self.judge_id, revision, sorted(unknown))
        return {stored.content_hash: search_text(stored.feedback.item) for stored in found}

    def embedded(self) -> vectors.Embedded:
        """How far the present embedder has come, and which one has seen most of the rest."""
        with self._reading() as (connection, revision):
            return vectors.embedded(connection, self.judge_id, self.embedder, revision)

    def keep_vectors(self, found: Mapping[str, Vectors]) -> None:
        """Store vectors of texts that are no item's, such as guidelines."""
        with self._store.writing(self.judge_id) as connection:
            vectors.store(connection, self.embedder, found)

    def store_vectors(self, found: Mapping[str, Vectors]) -> None:
        """Store vectors of what memory already holds; the index sees them once it is read again."""
        with self._store.writing(self.judge_id) as connection:
            held = episodic.held_texts(connection, list(found))  # a purge may have come between
            vectors.store(connection, self.embedder, {key: vector for key, vector in found.items() if key in held})

    def reread(self) -> None:
        """Read the index anew, with the vectors that came meanwhile; whoever searches waits, and never finds it empty."""
        with self._lock, self._reading() as (connection, revision):
            self._search.follow(connection, self.judge_id, revision, anew=True)
            self._view = None

    def stored(self) -> list[Stored]:
        """All records that hold, with their places in the database, oldest first."""
        with self._reading() as (connection, revision):
            return episodic.live(connection, self.judge_id, revision)

    def log(self, calls: Sequence[log.Call], item_id: str = "", verdict: Verdict | None = None) -> None:
        """Note a judgement's calls, and its verdict if it counts; both are in the store a moment later, if it can be written."""
        entries: list[Entry] = [(schema.ledger, row) for row in log.call_rows(self.judge_id, calls)]
        if verdict is not None:
            entries.append((schema.verdict, log.verdict_row(self.judge_id, item_id, verdict)))
        self._journal.append(entries)

    def remember(self, key: str, draw: int, value: Any, probabilities: Mapping[str, float] | None) -> None:
        """Keep what a model answered in a replay; it is in the store a moment later."""
        self._journal.append([(schema.replay, replays.row(self.judge_id, key, draw, value, probabilities))])

    @property
    def judge_id(self) -> int:
        """The judge's key in the store; it is registered, or its settings are brought up to date, at first use.

        Raises ConfigurationError when the stored judge has another scale.
        """
        return self._identity[0]

    @property
    def secret(self) -> str:
        """What keys the marks around judged text in this judge's prompts."""
        return self._identity[1]

    @cached_property
    def _identity(self) -> tuple[int, str]:
        found = identity.of(self._store, self.name, self._settings)
        with suppress(MemalignError):  # a purge that was cut short; if the disk cannot be cleared now, the next one tries again
            scrub(self._store)
        return found

    def _drop_purged(self, purged: int) -> None:
        """Forget all that was read before a purge, of whatever revision it was."""
        if purged != self.purged:
            self.purged = purged
            self._view = self._ballots = None
            self._remembered = (0, OrderedDict())
            self._search.reset()

    def _viewed(self, connection: Connection, revision: int) -> View:
        if self._view is None or self._view.revision != revision:
            self._search.follow(connection, self.judge_id, revision)
            found = semantic.at(connection, self.judge_id, revision)
            self._view = View(
                revision=revision,
                guidelines=tuple(guideline for guideline in found if guideline.state == "active"),
                decision=revisions.decision_at(connection, self.judge_id, revision),
                exemplars=self._chosen(connection, revision),
                items=len(self._search),
                whole=self._search.complete,
            )
        return self._view

    def _told(self, view: View, item_ids: Sequence[str]) -> dict[str, tuple[Episode, ...]]:
        """Item id -> what passes the filters of what experts said of it in the view's revision; what was read before is not read again."""
        with self._lock:
            if self._remembered[0] != view.revision:
                self._remembered = (view.revision, OrderedDict())
            remembered = self._remembered[1]
            told = {item_id: remembered[item_id] for item_id in item_ids if item_id in remembered}
        unread = [item_id for item_id in item_ids if item_id not in told]
        if unread:
            judge_id = self.judge_id
            found: dict[str, list[Episode]] = {item_id: [] for item_id in unread}
            for stored in episodic.of_few_items(self._store, judge_id, view.revision, unread):
                if self._retrieval.admits(stored.feedback):
                    found[stored.item_id].append(episodic.episode(stored))
            told |= {item_id: tuple(episodes) for item_id, episodes in found.items()}
        with self._lock:
            for item_id in item_ids:
                remembered[item_id] = told[item_id]
                remembered.move_to_end(item_id)
            while len(remembered) > _REMEMBERED_ITEMS:
                remembered.popitem(last=False)
        return told

    def _chosen(self, connection: Connection, revision: int) -> tuple[Episode, ...]:
        if self._exemplars <= 0:
            return ()
        held = self._admitted(connection, revision, self._search.newest(_MOST_CANDIDATES))
        candidates = [
            Candidate(
                item_id=stored.item_id,
                label=str(stored.feedback.value),
                explained=bool(stored.feedback.rationale.strip()),
                missed=stored.missed(self.scale),
                vector=self._search.vector(stored.item_id),
            )
            for stored in {stored.item_id: stored for stored in held}.values()
        ]
        chosen = set(choose(candidates, self._exemplars))
        return tuple(episodic.episode(stored) for stored in held if stored.item_id in chosen)

    def ballot(self, view: View) -> Ballot | None:
        """The cases of a view, ready to vote; None when there are none, or none that can."""
        with self._lock:
            if self._ballots is None or self._ballots[0] != view.revision:
                said = dict[str, list[Feedback]]()
                with self._store.reading() as connection:
                    for stored in self._admitted(connection, view.revision, self._search.newest(vote.MOST_CASES)):
                        said.setdefault(stored.item_id, []).append(stored.feedback)
                weighed = {item_id: [(self.weight(one.annotator), one.value) for one in records] for item_id, records in said.items()}
                texts = {item_id: search_text(records[0].item) for item_id, records in said.items()}
                self._ballots = (view.revision, vote.held(self.scale, weighed, self._search.vector, texts.__getitem__))
            return self._ballots[1]

    def _admitted(self, connection: Connection, revision: int, item_ids: Sequence[str]) -> list[Stored]:
        """The records on some items that hold in a revision and pass the filters, oldest first."""
        held = episodic.of_items(connection, self.judge_id, revision, item_ids)
        return [stored for stored in held if self._retrieval.admits(stored.feedback)]

    @property
    def weights(self) -> Mapping[str, float]:
        """Annotator -> weight, of those that do not count 1."""
        return self._settings.get("weights") or {}

    def weight(self, annotator: str) -> float:
        """How much an annotator counts in votes and majorities."""
        return float(self.weights.get(annotator, 1.0))

    @cached_property
    def scale(self) -> Scale:
        """The judge's scale."""
        return Scale.from_dict(self._settings["scale"])

    @contextmanager
    def _reading(self) -> Iterator[tuple[Connection, int]]:
        judge_id = self.judge_id  # before the connection: it may have to write
        with self._store.reading() as connection:
            yield connection, revisions.current(connection, judge_id) if self.pinned_revision is None else self.pinned_revision
