"""An aligned judge as a metric of DSPy's optimizers: a score for all of them, and the reasons for those that read."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

import dspy

from memalign.errors import BadRecord, ConfigurationError, PermanentError
from memalign.integrations.dspy.items import Fields, Places
from memalign.judge import Judge
from memalign.records import Verdict
from memalign.scale import Scale, Value

REMEMBERED = 1_000
"""Verdicts that are kept for the question about them that follows."""

_remembering = threading.Lock()


class Graded(dspy.Prediction):  # type: ignore[misc]
    """A score from 0 to 1 and its reasons: ``score``, ``feedback``, ``verdict``, ``rationale``, ``confidence``.

    It adds up and compares like a number, and it is true when it passes, as demonstrations that are bootstrapped must.
    """

    def __init__(self, base: Any = None, *, passing: float | None = None, **fields: Any) -> None:
        # DSPy drops a base that is not true, as one that does not pass is.
        super().__init__(dict(base.items()) if isinstance(base, dspy.Example) else base, **fields)
        self._passing: float = getattr(base, "_passing", 0.5) if passing is None else passing

    def __bool__(self) -> bool:
        return float(self) >= self._passing


class JudgeMetric:
    """What ``as_metric`` makes. Called by optimizers, by ``dspy.Evaluate``, or by you."""

    def __init__(
        self, judge: Judge, places: Places, *, scores: Mapping[Any, float] | None, abstained: float | None, passing: float, guidelines: int
    ) -> None:
        if not 0 < passing <= 1:
            raise ConfigurationError(f"passing is a score above 0 and up to 1, not {passing!r}")
        if abstained is not None and not 0 <= abstained <= 1:
            raise ConfigurationError(f"abstained is a score from 0 to 1, or None, not {abstained!r}")
        self.judge = judge
        self.scores = grades(judge.scale, scores)
        """The score of each value of the judge's scale."""
        self._places = places
        self._abstained = abstained
        self._passing = passing
        self._guidelines = guidelines
        self._known: dict[str, Verdict] = {}

    def __call__(self, example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Graded:
        """Judge a prediction; see ``as_metric``. ``trace`` and ``pred_trace`` are what optimizers pass, and change nothing.

        With ``pred_name`` GEPA asks for the reasons of a score that it has: it is answered from the same verdict, without another call.
        """
        if prediction is None:
            raise BadRecord("the program gave no prediction to judge", field="outputs")
        item = self._places.item(example, prediction)
        key = item.id
        verdict = self._known.get(key) if pred_name is not None else None
        if verdict is None:
            verdict = self.judge(inputs=item.inputs, outputs=item.outputs, expectations=item.expectations)
            self._remember(key, verdict)
        score = self._score(verdict)
        return Graded(
            passing=self._passing,
            score=score,
            feedback=self._feedback(verdict, score),
            verdict=verdict.value,
            rationale=verdict.rationale,
            confidence=verdict.confidence,
        )

    def _score(self, verdict: Verdict) -> float:
        if not verdict.abstained:
            return self.scores[verdict.value]
        if self._abstained is None:
            raise PermanentError(
                f"judge {self.judge.name!r} left this item to the experts (confidence {verdict.confidence}); "
                "give as_metric the score of such items, abstained=..., or make a judge without abstain_below"
            )
        return self._abstained

    def _feedback(self, verdict: Verdict, score: float) -> str:
        said = "left to the experts" if verdict.abstained else self.judge.scale.label_of(verdict.value)
        lines = [f"Verdict: {said}. Score: {score:.2f} on a scale from 0 (worst) to 1 (best)."]
        lines.append(f"Reason: {verdict.rationale}" if verdict.rationale else f"What was judged: {self.judge.instructions}")
        if score < 1 and self._guidelines and verdict.guideline_ids:
            shown = set(verdict.guideline_ids)
            texts = [guideline.text for guideline in self.judge.memory.guidelines(all_states=True) if guideline.id in shown]
            lines += ["What the experts look for:", *(f"- {text}" for text in texts[: self._guidelines])]
            if len(texts) > self._guidelines:
                lines.append(f"(and {len(texts) - self._guidelines} more guidelines)")
        return "\n".join(lines)

    def _remember(self, key: str, verdict: Verdict) -> None:
        with _remembering:
            self._known.pop(key, None)
            self._known[key] = verdict
            while len(self._known) > REMEMBERED:
                del self._known[next(iter(self._known))]


def as_metric(
    judge: Judge,
    *,
    inputs: Fields = None,
    outputs: Fields = None,
    expectations: Fields = (),
    scores: Mapping[Any, float] | None = None,
    abstained: float | None = None,
    passing: float = 0.5,
    guidelines: int = 8,
) -> JudgeMetric:
    """Make an aligned judge a metric: for GEPA and SIMBA, ``dspy.Evaluate``, bootstrapping, and as ``reward_fn`` of Refine and BestOfN.

    Called with (example, prediction) and up to three more arguments, it gives a ``Graded``: a dspy.Prediction with ``score`` from 0 to 1, more
    is better, and ``feedback``, a text with verdict, reason and, below a score of 1, at most ``guidelines`` of the guidelines the judge
    followed. It is true from a score of ``passing`` on.

    ``inputs``, ``outputs``, ``expectations``: where they stand (see ``Fields``); by default the example's input fields, the prediction's fields
    (a single one as its bare value), and none. ``scores``: the score of each verdict; boolean scales have 1 and 0, score scales run
    evenly from 0 to 1, categories need it. ``abstained``: the score of an item that the judge leaves to the experts; by default an error.

    Whatever fails is raised, RetryableError or PermanentError; a failure is never a score here, and DSPy puts its own ``failure_score`` in its
    place. Raises ConfigurationError for a pairwise judge, and for scores that are missing or not within 0 to 1.
    """
    places = Places(inputs, outputs, expectations)
    return JudgeMetric(judge, places, scores=scores, abstained=abstained, passing=passing, guidelines=guidelines)


def grades(scale: Scale, scores: Mapping[Any, float] | None = None) -> dict[Value, float]:
    """The score from 0 to 1 of each value of a scale. Raises ConfigurationError."""
    if scale.kind not in ("boolean", "categories", "score"):
        why = "it compares two outputs" if scale.kind == "pairwise" else "its values are not listed"
        raise ConfigurationError(f"a judge of a {scale.kind} scale gives no score, as {why}; use one with a boolean, categories or score scale")
    if scores is not None:
        return _given(scale, scores)
    if scale.kind == "categories":
        example = ", ".join(f"{label!r}: ..." for label in scale.labels)
        raise ConfigurationError(f"categories have no numbers of their own; give the score of each, from 0 to 1: scores={{{example}}}")
    if scale.kind == "boolean":
        return {True: 1.0, False: 0.0}
    last = len(scale.values) - 1
    return {value: place / last for place, value in enumerate(scale.values)}


def _given(scale: Scale, scores: Mapping[Any, float]) -> dict[Value, float]:
    found: dict[Value, float] = {}
    for key, score in scores.items():
        try:
            value = scale.check(key)
        except BadRecord as error:
            raise ConfigurationError(f"scores: {error.reason}") from error
        if not isinstance(score, int | float) or not math.isfinite(score) or not 0 <= score <= 1:
            raise ConfigurationError(f"scores: {score!r:.60} for {key!r:.60} is not a number from 0 to 1")
        found[value] = float(score)
    missing = [label for label, value in zip(scale.labels, scale.values, strict=True) if value not in found]
    if missing:
        raise ConfigurationError(f"scores: there is none for {', '.join(missing)}")
    return found
