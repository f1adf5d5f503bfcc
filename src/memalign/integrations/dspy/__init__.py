"""memalign inside DSPy: an aligned judge as a metric and as a module, and feedback from examples."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

from memalign.errors import ConfigurationError, MissingExtra

OLDEST = (3, 0)
"""The first DSPy with GEPA, and with metrics that return a score and its reasons in one prediction."""

try:
    import_module("dspy")
except ModuleNotFoundError as error:
    if error.name != "dspy":
        raise
    raise MissingExtra("dspy", "dspy") from error

if tuple(int(part) for part in version("dspy").split(".")[:2]) < OLDEST:
    raise ConfigurationError(f"dspy {version('dspy')} has no GEPA; install dspy {'.'.join(map(str, OLDEST))} or newer")

from memalign.integrations.dspy.examples import feedback_from  # noqa: E402 - after the check
from memalign.integrations.dspy.metric import Graded, JudgeMetric, as_metric  # noqa: E402 - after the check
from memalign.integrations.dspy.module import JudgeModule, as_module  # noqa: E402 - after the check

__all__ = ["Graded", "JudgeMetric", "JudgeModule", "as_metric", "as_module", "feedback_from"]
