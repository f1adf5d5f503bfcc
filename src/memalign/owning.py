"""The verbs by which experts own a memory: overwrite, retract, purge, with a preview of each."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memalign import edge
from memalign.description import Description
from memalign.errors import ConfigurationError, MemalignError
from memalign.records import Feedback, each_feedback

if TYPE_CHECKING:
    from memalign.alignment import AlignReport, Mode, Withdrawal
    from memalign.alignment.withdrawal import Verb
    from memalign.memory.selection import Selection

Progress = Callable[[str, int, int], None]
"""Called with the stage, how many are done, and of how many."""


def silent(_stage: str, _done: int, _total: int) -> None:
    """Hear of progress, and say nothing."""


class Owned(Description):
    """A judge whose memory follows when experts change their minds, requirements move, or privacy demands removal.

    Records are named by ``ids``, or by ``annotator``, ``before`` and ``after`` (a time, or one in ISO 8601), ``source``, ``search`` (a text that
    occurs in them), ``like`` (a text whose ``nearest`` items in meaning are meant), all of which must hold together; or by ``everything``.
    """

    @abstractmethod
    async def aalign(
        self,
        feedback: Iterable[Feedback] = (),
        *,
        verify: Mode | None = None,
        override: bool = False,
        actor: str = "",
        progress: Progress = silent,
    ) -> AlignReport:
        """Learn from feedback, and from what waits."""

    def overwrite(
        self,
        feedback: Feedback | Iterable[Feedback],
        *,
        verify: Mode | None = None,
        override: bool = False,
        actor: str = "",
        progress: Progress = silent,
    ) -> AlignReport:
        """Replace experts' earlier records of the same ids; what rested on them is distilled again by a call that never sees the old text.

        ``verify`` and ``override`` as in ``align``. Raises NotFound, before any change, for a record that memory does not hold.
        """
        return edge.run(self.aoverwrite(feedback, verify=verify, override=override, actor=actor, progress=progress))

    async def aoverwrite(
        self,
        feedback: Feedback | Iterable[Feedback],
        *,
        verify: Mode | None = None,
        override: bool = False,
        actor: str = "",
        progress: Progress = silent,
    ) -> AlignReport:
        """Replace experts' earlier records; see ``overwrite``."""
        from memalign.alignment.forget import overwritable

        self._writable()
        records = [feedback] if isinstance(feedback, Feedback) else list(each_feedback(feedback))
        await asyncio.to_thread(overwritable, self.memory, [record.id for record in records])
        return await self.aalign(records, verify=verify, override=override, actor=actor, progress=progress)

    def unalign(self, ids: str | Iterable[str] | None = None, *, actor: str = "", dry_run: bool = False, **selection: Any) -> Withdrawal:
        """Retract records: out of retrieval and evidence; guidelines left without evidence retire. They can be given again.

        ``dry_run``: only say what would be touched. Raises NotFound, before any change, for an id that memory does not hold.
        """
        return edge.run(self.aunalign(ids, actor=actor, dry_run=dry_run, **selection))

    async def aunalign(self, ids: str | Iterable[str] | None = None, *, actor: str = "", dry_run: bool = False, **selection: Any) -> Withdrawal:
        """Retract records; see ``unalign``."""
        from memalign.alignment import forget

        if dry_run:
            return await self.apreview("unalign", ids, **selection)
        self._writable()
        chosen = await self._selected(ids, selection)
        return await asyncio.to_thread(forget.unalign, self.memory, chosen, actor=actor)

    def purge(
        self,
        ids: str | Iterable[str] | None = None,
        *,
        expired: bool = False,
        actor: str = "",
        dry_run: bool = False,
        progress: Progress = silent,
        **selection: Any,
    ) -> Withdrawal:
        """Delete records for good, with all versions and all that came from them, and distil again from what remains.

        At once no judgement sees them; then their bytes go from the disk, and are searched for. A purged id is not learned again until
        ``memory.lift``. ``expired``: the records beyond the judge's ``retention``. ``dry_run``: only say what would be touched. Raises NotFound,
        before any change, for an id that memory never held; what could not be finished stands in the report, and is taken up by the next
        opening, align or purge.
        """
        return edge.run(self.apurge(ids, expired=expired, actor=actor, dry_run=dry_run, progress=progress, **selection))

    async def apurge(
        self,
        ids: str | Iterable[str] | None = None,
        *,
        expired: bool = False,
        actor: str = "",
        dry_run: bool = False,
        progress: Progress = silent,
        **selection: Any,
    ) -> Withdrawal:
        """Delete records for good; see ``purge``."""
        from memalign.alignment import forget

        if dry_run:
            return await self.apreview("purge", ids, expired=expired, **selection)
        self._writable()
        chosen = await self._selected(ids, selection, expired=expired)
        report = await asyncio.to_thread(forget.purge, self.memory, chosen, actor=actor, instructions=self.instructions)
        if not report.unconsumed:
            return report
        try:
            aligned = await self.aalign(actor=actor, progress=progress)
        except MemalignError as error:
            return replace(report, note=f"{report.note} what remains could not be distilled again yet: {error}".strip())
        return replace(
            report,
            aligned=aligned,
            revision=aligned.revision,
            unconsumed=aligned.unconsumed,
            usage=aligned.usage,
            cost_usd=aligned.cost_usd,
            seconds=report.seconds + aligned.seconds,
        )

    def preview(
        self, verb: Verb, ids: str | Iterable[str] | Feedback | Iterable[Feedback] | None = None, *, expired: bool = False, **selection: Any
    ) -> Withdrawal:
        """What ``unalign``, ``overwrite`` or ``purge`` would touch: records, guidelines by evidence and by taint. Nothing is changed.

        An overwrite takes the feedback itself, or its ids. Raises NotFound.
        """
        return edge.run(self.apreview(verb, ids, expired=expired, **selection))

    async def apreview(
        self, verb: Verb, ids: str | Iterable[str] | Feedback | Iterable[Feedback] | None = None, *, expired: bool = False, **selection: Any
    ) -> Withdrawal:
        """What a verb would touch; see ``preview``."""
        from memalign.alignment import forget

        if verb not in ("unalign", "overwrite", "purge"):
            raise ConfigurationError(f"there is a preview of unalign, overwrite and purge, not of {verb!r}")
        named = [ids] if isinstance(ids, str | Feedback) else ids
        keys = None if named is None else [each.id if isinstance(each, Feedback) else each for each in named]
        if verb == "overwrite":
            await asyncio.to_thread(forget.overwritable, self.memory, keys or [])
        chosen = await self._selected(keys, selection, expired=expired)
        return await asyncio.to_thread(forget.preview, self.memory, chosen, verb, instructions=self.instructions)

    async def _expire(self, report: AlignReport, *, actor: str, progress: Progress) -> AlignReport:
        """After an alignment: purge what is beyond the retention limits."""
        from memalign.alignment.withdrawal import expired as with_expired

        if (await self._selected(None, {}, expired=True)).empty:
            return report
        gone = await self.apurge(expired=True, actor=actor, progress=progress)
        held = {guideline.id: guideline for guideline in await asyncio.to_thread(self.memory.guidelines, all_states=True)}
        return with_expired(report, gone, held)

    async def _selected(self, ids: str | Iterable[str] | None, selection: dict[str, Any], *, expired: bool = False) -> Selection:
        from memalign.alignment import forget
        from memalign.memory.selection import Selection

        if not expired:
            return await forget.find(self.session, Selection.of(ids, **selection))
        if ids is not None or selection:
            raise ConfigurationError("expired and a selection of records exclude each other")
        if self.retention is None:
            advice = "give it some: memalign init --max-age-days 365, or Judge(..., retention=Retention(max_age_days=365))"
            raise ConfigurationError(f"judge {self.name!r} has no limits of retention; {advice}")
        return await asyncio.to_thread(forget.beyond, self.memory, self.retention)

    def _writable(self) -> None:
        if self.revision is not None:
            raise ConfigurationError(f"this judge is pinned to revision {self.revision} and read-only; use the judge it was made from")
