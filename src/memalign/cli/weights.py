"""Progress while the weights of an in-process model are put together, which happens once on a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memalign.judge import Judge
    from memalign.models import ChatModel

_MB = 1_000_000


@contextmanager
def watched(judge: Judge, tell: Callable[[str, int, int], None]) -> Iterator[None]:
    """Let ``tell`` hear how far a judge's weights are put together."""
    models = [judge.session.model, judge.session.reflection_model]
    for model in models:
        watch(model, tell)
    try:
        yield
    finally:
        for model in models:
            watch(model, None)


def watch(model: ChatModel, tell: Callable[[str, int, int], None] | None) -> None:
    """Let ``tell`` hear about one model's weights; models elsewhere have none."""
    if not model.name.startswith("local/"):
        return
    from memalign.models.local import LocalChatModel

    if isinstance(model, LocalChatModel):
        model.progress = None if tell is None else lambda done, total: tell("weights (MB)", done // _MB, total // _MB)
