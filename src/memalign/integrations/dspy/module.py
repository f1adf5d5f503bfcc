"""An aligned judge as a part of DSPy programs."""

from __future__ import annotations

from typing import Any, Self

import dspy

from memalign.errors import ConfigurationError
from memalign.integrations.dspy.items import plain
from memalign.judge import Judge
from memalign.records import Verdict


class JudgeModule(dspy.Module):  # type: ignore[misc]
    """What ``as_module`` makes. Copies of a program share its judge and memory."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, *, inputs: Any = None, outputs: Any = None, expectations: Any = None) -> dspy.Prediction:
        """Judge one item; see ``as_module``. Raises RetryableError or PermanentError."""
        return _prediction(self.judge(inputs=plain(inputs), outputs=plain(outputs), expectations=plain(expectations)))

    async def aforward(self, *, inputs: Any = None, outputs: Any = None, expectations: Any = None) -> dspy.Prediction:
        """Judge one item; see ``as_module``."""
        return _prediction(await self.judge.acall(inputs=plain(inputs), outputs=plain(outputs), expectations=plain(expectations)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Optimizers copy programs; a copied judge would open its memory anew, and one in RAM would be empty.
        return type(self)(self.judge)

    def __getstate__(self) -> dict[str, Any]:
        if self.judge.location is None:
            raise ConfigurationError(f"the memory of judge {self.judge.name!r} is in RAM and cannot be saved with a program; give it memory=...")
        state: dict[str, Any] = super().__getstate__()
        return state


def as_module(judge: Judge) -> JudgeModule:
    """Make an aligned judge a dspy.Module: called with ``inputs=``, ``outputs=``, ``expectations=`` (any JSON, examples, Pydantic models).

    It gives a dspy.Prediction with ``verdict`` (a value of the judge's scale), ``rationale``, ``confidence`` (0 to 1, or None), ``abstained``, and
    the ids of ``guidelines`` and ``cases`` it rests on. Whatever fails is raised, RetryableError or PermanentError. It has no predictors, so
    optimizers leave it as it is; the judge asks its own model, not that of dspy.settings.
    """
    return JudgeModule(judge)


def _prediction(verdict: Verdict) -> dspy.Prediction:
    return dspy.Prediction(
        verdict=verdict.value,
        rationale=verdict.rationale,
        confidence=verdict.confidence,
        abstained=verdict.abstained,
        guidelines=list(verdict.guideline_ids),
        cases=list(verdict.episode_ids),
    )
