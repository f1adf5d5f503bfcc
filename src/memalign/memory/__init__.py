"""Memory: the only door to the stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memalign.errors import NotFound
from memalign.memory import audit, difference, episodic, explanation, log, provenance, revisions, rollback, semantic, tombstones
from memalign.memory.audit import Audit
from memalign.memory.difference import Difference
from memalign.memory.explanation import Explanation
from memalign.memory.guidance import Guidance
from memalign.memory.identity import judge_names, judge_settings
from memalign.memory.provenance import Provenance
from memalign.memory.revisions import Revision
from memalign.memory.rollback import Rollback
from memalign.memory.selection import Selection, select_records
from memalign.memory.vectors import Embedded
from memalign.memory.view import Cases, View
from memalign.records import Episode, Feedback, Guideline, Usage
from memalign.retrieval import Retrieval

if TYPE_CHECKING:
    from memalign.memory.export import Exported
    from memalign.memory.merge import Policy
    from memalign.memory.porting import Imported

Progress = Callable[[str, int, int], None]
"""Called with the stage, how many are done, and of how many."""


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


__all__ = ["Cases", "Difference", "Embedded", "Explanation", "Memory", "Provenance", "Rollback", "View", "judge_names", "judge_settings"]


class Memory(Guidance):
    """The dual memory of one judge in one store: what experts see of it."""

    def guidelines(self, *, all_states: bool = False) -> list[Guideline]:
        """The active guidelines, oldest first; ``all_states`` adds the retired and others."""
        with self._reading() as (connection, revision):
            found = semantic.at(connection, self.judge_id, revision)
        return [guideline for guideline in found if all_states or guideline.state == "active"]

    def episodes(self) -> list[Episode]:
        """All experts' verdicts that hold, oldest first."""
        return [episodic.episode(stored) for stored in self.stored()]

    def shared(self, item_ids: Sequence[str] = ()) -> list[Feedback]:
        """The records on items that several experts judged, and on some more items."""
        with self._reading() as (connection, revision):
            return [stored.feedback for stored in episodic.shared(connection, self.judge_id, revision, item_ids)]

    def newest(self, ids: Iterable[str]) -> dict[str, Feedback]:
        """Id -> what the expert last said, of those ids whose records hold or wait for ``align``."""
        with self._reading() as (connection, _):
            return {stored.feedback.id: stored.feedback for stored in episodic.newest(connection, self.judge_id, list(ids))}

    def waiting(self) -> int:
        """How many records are stored but not fully learned; the next ``align`` takes them up."""
        with self._reading() as (connection, _):
            return len(episodic.waiting(connection, self.judge_id))

    def history(self) -> list[Revision]:
        """All changes of memory, oldest first."""
        with self._reading() as (connection, _):
            return revisions.history(connection, self.judge_id)

    def mark(self, revision: int) -> str:
        """By which a revision is known again: that of another judge differs, even at the same place under the same name."""
        with self._reading() as (connection, _):
            return revisions.mark(connection, self.judge_id, revision)

    def audit(self) -> Audit:
        """Who changed memory when and how much, and whether the chain of seals holds."""
        with self._reading() as (connection, _):
            return audit.read(connection, self.judge_id)

    def find(self, selection: Selection) -> list[Episode]:
        """The selected records that hold, oldest first. Raises NotFound for an unknown id."""
        with self._reading() as (connection, _):
            found = select_records(connection, self.judge_id, selection, versions="held")
        return [episodic.episode(stored) for stored in found if stored.since is not None]

    def lift(self, ids: Iterable[str]) -> int:
        """Let purged records be learned again, if they are given again; gives how many of the ids had been purged."""
        with self._store.writing(self.judge_id) as connection:
            return len(tombstones.lift(connection, self.judge_id, list(ids)))

    def spent(self) -> tuple[Usage, float | None, float]:
        """Usage, cost in US dollars (None when a price is unknown) and seconds of all model calls so far, from the ledger."""
        self._journal.flush()
        with self._reading() as (connection, _):
            return log.spent(connection, self.judge_id)

    def diff(self, before: int, after: int) -> Difference:
        """What distinguishes two revisions, in words of experts: records, guidelines, the decision. Raises NotFound."""
        with self._reading() as (connection, newest):
            for revision in (before, after):
                self._check(revision, newest)
            return difference.between(connection, self.judge_id, before, after)

    def rollback(self, revision: int, *, actor: str = "", dry_run: bool = False) -> Rollback:
        """Make memory as it was in a revision, as a new revision; another rollback undoes it. What was purged does not come back.

        Records that wait for their first ``align`` go on waiting. Raises NotFound.
        """
        self._writable()
        judge_id = self.judge_id
        with self._store.reading() if dry_run else self._store.writing(judge_id) as connection:
            self._check(revision, revisions.current(connection, judge_id))
            return rollback.to(connection, judge_id, revision, actor=actor, dry_run=dry_run)

    def export(self, path: str | Path, *, vectors: bool = True, log: bool = False, overwrite: bool = False, progress: Progress = _silent) -> Exported:
        """Write the whole memory, every version of it, to one file that ``import_`` reads anywhere; see docs/format.md.

        ``vectors``: so that nothing is embedded again; ``log``: the verdict log and the ledger as well. The file takes its name when it is complete.
        Raises ConfigurationError, StoreError.
        """
        from memalign.memory.export import export

        self._journal.flush()
        with self._reading() as (connection, _):
            return export(connection, self.judge_id, Path(path), vectors=vectors, log=log, overwrite=overwrite, progress=progress)

    def import_(
        self, path: str | Path, *, on_conflict: Policy = "newer", actor: str = "", dry_run: bool = False, progress: Progress = _silent
    ) -> Imported:
        """Bring in an export: as it was when this memory is empty, else merged as one new revision.

        ``on_conflict`` decides where both hold a record of one id with different content: the "newer" by the time at which the expert spoke,
        "ours", "theirs", or "error". What was purged here stays out, and what the file's tombstones name is purged here. A bad file raises
        StoreError, and nothing is changed.
        """
        from memalign.memory import porting

        self._writable()
        self._journal.flush()
        found = porting.survey(Path(path), progress)
        self.judge_id  # noqa: B018 - registers a judge that is new here with its own settings, not with those of the file
        made = porting.bring(self._store, self.name, Path(path), found, on_conflict=on_conflict, actor=actor, dry_run=dry_run, progress=progress)
        self.__dict__.pop("_identity", None)  # a restored judge has the secret of the one that was exported
        return made

    def explain(self, verdict_id: str) -> Explanation:
        """On which guidelines, cases and revision a logged verdict rests, as they read then. Raises NotFound."""
        self._journal.flush()
        with self._reading() as (connection, _):
            found = explanation.of(connection, self.judge_id, verdict_id)
        if found is None:
            raise NotFound(f"judge {self.name!r} logged no verdict {verdict_id!r}; a verdict's id is its field `id` (empty in evaluations)")
        return found

    def provenance(self, key: str, *, verdicts: int = 100) -> Provenance:
        """From a guideline to its cases, from a case to its guidelines: all versions, and the newest verdicts that they touched. Raises NotFound."""
        self._journal.flush()
        with self._reading() as (connection, _):
            found = provenance.of(connection, self.judge_id, key, verdicts=verdicts)
        if found is None:
            raise NotFound(f"no guideline or case {key!r} in judge {self.name!r}; see memory.guidelines(all_states=True) and memory.episodes()")
        return found

    def at(self, revision: int) -> Memory:
        """The same memory, read-only, as it was in a revision. Raises NotFound."""
        with self._reading() as (_, newest):
            self._check(revision, newest)
        return self._other(revision=revision)

    def under(self, embedder: str) -> Memory:
        """The same memory, searched by the vectors of another embedder."""
        return self._other(embedder=embedder)

    def choosing(self, retrieval: Retrieval) -> Memory:
        """The same memory, from which cases are chosen by other settings than those that it keeps."""
        return self._other(retrieval=retrieval)

    def _other(self, *, embedder: str | None = None, revision: int | None = None, retrieval: Retrieval | None = None) -> Memory:
        other = Memory(
            self._store,
            self.name,
            self._settings,
            self.embedder if embedder is None else embedder,
            exemplars=self._exemplars,
            revision=self.pinned_revision if revision is None else revision,
            retrieval=self._chosen_by if retrieval is None else retrieval,
        )
        other._journal = self._journal  # one store, one journal: whichever closes the store first, all is written
        return other

    def _check(self, revision: int, newest: int) -> None:
        if not 0 <= revision <= newest:
            raise NotFound(f"judge {self.name!r} has no revision {revision}; its newest is {newest}")
