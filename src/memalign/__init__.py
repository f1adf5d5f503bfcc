"""memalign: align LLM judges with domain experts from a handful of natural-language corrections.

Names load when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memalign.agreement import Agreement, Interval
    from memalign.alignment import Advice, AlignReport, Withdrawal
    from memalign.calibration import Calibration
    from memalign.errors import (
        BadRecord,
        ConfigurationError,
        EmbeddingError,
        ItemTooLong,
        MemalignError,
        MissingExtra,
        ModelRefused,
        ModelUnavailable,
        NotFound,
        PermanentError,
        RetryableError,
        StoreBusy,
        StoreError,
        StoreUnavailable,
        UnreadableReply,
    )
    from memalign.judge import Judge
    from memalign.memory.retention import Retention
    from memalign.panel import Panel
    from memalign.records import Episode, Failure, Feedback, Guideline, Item, Usage, Verdict
    from memalign.reliability import Reliability
    from memalign.retrieval import Retrieval
    from memalign.scale import Scale
    from memalign.suggesting import Suggestion

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "Agreement",
    "AlignReport",
    "BadRecord",
    "Calibration",
    "ConfigurationError",
    "EmbeddingError",
    "Episode",
    "Failure",
    "Feedback",
    "Guideline",
    "Interval",
    "Item",
    "ItemTooLong",
    "Judge",
    "MemalignError",
    "MissingExtra",
    "ModelRefused",
    "ModelUnavailable",
    "NotFound",
    "Panel",
    "PermanentError",
    "Reliability",
    "Retention",
    "Retrieval",
    "RetryableError",
    "Scale",
    "StoreBusy",
    "StoreError",
    "StoreUnavailable",
    "Suggestion",
    "UnreadableReply",
    "Usage",
    "Verdict",
    "Withdrawal",
]

_HOMES = {
    "Advice": "alignment",
    "Agreement": "agreement",
    "AlignReport": "alignment",
    "Calibration": "calibration",
    "Interval": "agreement",
    "Judge": "judge",
    "Panel": "panel",
    "Reliability": "reliability",
    "Retention": "memory.retention",
    "Retrieval": "retrieval",
    "Scale": "scale",
    "Suggestion": "suggesting",
    "Withdrawal": "alignment",
} | dict.fromkeys(("Episode", "Failure", "Feedback", "Guideline", "Item", "Usage", "Verdict"), "records")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'memalign' has no attribute {name!r}")
    value = getattr(import_module(f"memalign.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
