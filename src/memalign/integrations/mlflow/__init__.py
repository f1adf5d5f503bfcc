"""memalign inside MLflow: ``MemAlignOptimizer`` in place of MLflow's own, with a memory that stays.

Importing this package also lets MLflow's ``get_scorer`` and ``list_scorers`` load the judges that it registered.
"""

from __future__ import annotations

from memalign.errors import ConfigurationError, MissingExtra

OLDEST = (3, 9)
"""The first MLflow with judges that keep a memory, which is the form in which judges are registered."""

try:
    from mlflow.version import VERSION
except ImportError as error:
    raise MissingExtra("mlflow", "mlflow,minilm", instead="'memalign[mlflow]' where a hosted embedding_model is named") from error

if tuple(int(part) for part in VERSION.split(".")[:2]) < OLDEST:
    raise ConfigurationError(f"mlflow {VERSION} has no judges with memory; install mlflow {'.'.join(map(str, OLDEST))} or newer")

from memalign.integrations.mlflow.exchange import export_judge, import_judge  # noqa: E402 - after the check
from memalign.integrations.mlflow.judge import AlignedJudge  # noqa: E402 - after the check
from memalign.integrations.mlflow.optimizer import MemAlignOptimizer  # noqa: E402 - after the check
from memalign.integrations.mlflow.registry import load_judge, teach_mlflow  # noqa: E402 - after the check

__all__ = ["AlignedJudge", "MemAlignOptimizer", "export_judge", "import_judge", "load_judge"]

teach_mlflow()
