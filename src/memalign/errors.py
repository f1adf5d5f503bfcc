"""Everything memalign raises on purpose.

MemalignError
├── RetryableError            the same call may succeed later
│   ├── ModelUnavailable      refused, dropped, timed out, 429 or 5xx after all retries
│   ├── UnreadableReply       the model answered, but not with what was asked
│   ├── StoreBusy             another process held the write lock for too long
│   └── StoreUnavailable      the database's server cannot be reached, or takes no work just now
└── PermanentError            repeating the call cannot help
    ├── ConfigurationError    a setting, key, name or optional part is wrong or missing
    │   └── MissingExtra      an optional dependency is not installed
    ├── ModelRefused          the endpoint rejects the request (400, 401, 403, 404, 422), or the quota is used up
    ├── ItemTooLong           the item does not fit the model's window; it is never cut silently
    ├── BadRecord             a feedback record or row cannot be used (names row, field and reason)
    ├── EmbeddingError        an embedder returned NaN, a wrong dimension or a wrong count
    ├── NotFound              no such judge, record, guideline or revision
    └── StoreError            the database is corrupt, unwritable, foreign or from a newer release
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memalign.records import Usage


class MemalignError(Exception):
    """Base of every error raised on purpose; the message says what to do next."""

    retryable: bool = False
    """Whether repeating the same call can cure it."""


class RetryableError(MemalignError):
    """The same call may succeed later."""

    retryable = True


class PermanentError(MemalignError):
    """Repeating the call cannot help: something has to be changed first."""


class ModelUnavailable(RetryableError):
    """The endpoint refused, dropped the connection, timed out, or kept answering 429 or 5xx."""

    def __init__(self, message: str, *, attempts: int = 1) -> None:
        super().__init__(message)
        self.attempts = attempts


class UnreadableReply(RetryableError):
    """The model answered with something that is not what was asked for; ``usage`` is what that took, if a model raises it and knows."""

    def __init__(self, message: str, *, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.usage = usage


class StoreBusy(RetryableError):
    """Another process held the database's write lock for longer than the wait."""


class StoreUnavailable(RetryableError):
    """The database's server cannot be reached, broke the connection, or takes no work just now."""


class ConfigurationError(PermanentError):
    """A setting, key or name is wrong or missing."""


class MissingExtra(ConfigurationError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, *, instead: str = "") -> None:
        """``instead``: what can be done without it."""
        super().__init__(f"{package} is not installed; run: pip install 'memalign[{extra}]'" + (f", or {instead}" if instead else ""))
        self.package = package
        self.extra = extra


class ModelRefused(PermanentError):
    """The endpoint rejects this request; repeating it gives the same answer."""


class ItemTooLong(PermanentError):
    """The item does not fit the model's window."""


class BadRecord(PermanentError):
    """A record cannot be used; ``row`` (1-based) and ``field`` say where, the message says why."""

    def __init__(self, reason: str, *, field: str = "", row: int | None = None) -> None:
        where = ", ".join(part for part in (f"row {row}" if row else "", f"field '{field}'" if field else "") if part)
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason
        self.field = field
        self.row = row


class EmbeddingError(PermanentError):
    """An embedder returned NaN, a wrong dimension or a wrong number of vectors."""


class NotFound(PermanentError):
    """No such judge, record, guideline or revision."""


class StoreError(PermanentError):
    """The database is corrupt, cannot be written, is foreign, or comes from a newer release."""
