"""``memalign doctor --profile``: where the time of a judgement goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memalign.judge import Judge

JUDGEMENTS = 12
STAGES = ("embed", "search", "assemble", "queue", "model", "read")


def profile(judge: Judge, *, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Judge items that memory holds, own cases hidden, one after the other; gives milliseconds (p50, p95) a stage, and what went beside them.

    The first judgement, which loads what is needed, counts apart. Raises ConfigurationError for an empty memory, and what judging raises.
    """
    from memalign.errors import ConfigurationError, PermanentError
    from memalign.records import Verdict

    items = list({episode.item_id: episode.feedback.item for episode in judge.memory.episodes()}.values())[-JUDGEMENTS - 1 :]
    if not items:
        raise ConfigurationError("this memory holds no case to judge; align some feedback first")
    found: list[Verdict] = []
    for done, item in enumerate(items, start=1):
        verdict = judge.batch([item], own=False)[0]
        if not isinstance(verdict, Verdict):
            raise PermanentError(f"the judge does not answer: {verdict.error}")
        found.append(verdict)
        progress("profile", done, len(items))
    started = time.perf_counter()
    _ = judge.memory.store  # writes the journal
    written = time.perf_counter() - started
    first, rest = found[0], found[1:] or found
    stages = {stage: _figures([(verdict.trace.seconds if verdict.trace else {}).get(stage, 0.0) for verdict in rest]) for stage in STAGES}
    known = [sum(verdict.trace.seconds.values()) if verdict.trace else 0.0 for verdict in rest]
    beside = [max(0.0, verdict.seconds - spent) for verdict, spent in zip(rest, known, strict=True)]  # replies heard at once add up to more
    whole = _figures([verdict.seconds for verdict in rest])
    return {
        "judgements": len(rest),
        "first": round(1000 * first.seconds, 2),
        "stages": stages | {"other": _figures(beside), "whole": whole},
        "write": round(1000 * written, 2),
    }


def lines(figures: dict[str, Any]) -> list[str]:
    """The profile as a table of plain text."""
    told = [f"{'stage':<10}{'p50 ms':>10}{'p95 ms':>10}"]
    told += [f"{stage:<10}{p50:>10.2f}{p95:>10.2f}" for stage, (p50, p95) in figures["stages"].items()]
    return [
        *told,
        f"over {figures['judgements']} judgements, one after the other, own cases hidden; the first took {figures['first']:.0f} ms",
        f"write: the last verdicts and their cost reached the store in {figures['write']:.1f} ms, while nobody waited",
    ]


def _figures(seconds: list[float]) -> tuple[float, float]:
    ordered = sorted(seconds)
    half, most = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95))
    return round(1000 * half, 2), round(1000 * most, 2)
