"""Memory: the only door to the stores."""

from __future__ import annotations

from memalign.errors import NotFound
from memalign.memory import episodic, log, revisions, semantic
from memalign.memory.guidance import Guidance
from memalign.memory.identity import judge_names, judge_settings
from memalign.memory.lookup import Cases, View
from memalign.memory.revisions import Revision
from memalign.records import Episode, Guideline, Usage

__all__ = ["Cases", "Memory", "View", "judge_names", "judge_settings"]


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

    def waiting(self) -> int:
        """How many records are stored but not fully learned; the next ``align`` takes them up."""
        with self._reading() as (connection, _):
            return len(episodic.waiting(connection, self.judge_id))

    def history(self) -> list[Revision]:
        """All changes of memory, oldest first."""
        with self._reading() as (connection, _):
            return revisions.history(connection, self.judge_id)

    def spent(self) -> tuple[Usage, float | None, float]:
        """Usage, cost in US dollars (None when a price is unknown) and seconds of all model calls so far, from the ledger."""
        self._journal.flush()
        with self._reading() as (connection, _):
            return log.spent(connection, self.judge_id)

    def at(self, revision: int) -> Memory:
        """The same memory, read-only, as it was in a revision. Raises NotFound."""
        with self._reading() as (_, newest):
            pass
        if not 0 <= revision <= newest:
            raise NotFound(f"judge {self.name!r} has no revision {revision}; its newest is {newest}")
        pinned = Memory(self._store, self.name, self._settings, self.embedder, exemplars=self._exemplars, revision=revision)
        pinned._journal = self._journal  # one store, one journal: whichever closes the store first, all is written
        return pinned
