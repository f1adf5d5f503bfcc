"""The one place where memalign's errors become MLflow's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST

from memalign.errors import MemalignError, NotFound, RetryableError


def refused(message: str) -> MlflowException:
    """What a caller did wrong, and what to do instead."""
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def gone(message: str) -> MlflowException:
    """What should be there and is not."""
    return MlflowException(message, error_code=RESOURCE_DOES_NOT_EXIST)


@contextmanager
def as_mlflow(doing: str) -> Iterator[None]:
    """Errors of memalign come out as MlflowException, with what was being done before the reason."""
    try:
        yield
    except MemalignError as error:
        raise MlflowException(f"{doing}: {type(error).__name__}: {error}", error_code=_code(error)) from error


def _code(error: MemalignError) -> Any:
    if isinstance(error, NotFound):
        return RESOURCE_DOES_NOT_EXIST
    return INTERNAL_ERROR if isinstance(error, RetryableError) else INVALID_PARAMETER_VALUE
