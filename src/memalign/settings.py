"""Process settings, read from the environment.

Importing this module loads pydantic-settings, so callers import it where they need it. Nothing is created on disk by reading settings.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from memalign.errors import ConfigurationError

OPENAI_URL = "https://api.openai.com/v1"


def sendable(key: SecretStr) -> SecretStr:
    """The key itself. Raises ConfigurationError, which does not show it, when no HTTP header can hold it."""
    if not key.get_secret_value().isprintable():
        raise ConfigurationError("OPENAI_API_KEY holds a line break or another control character; set it to the key alone")
    return key


class Settings(BaseSettings):
    """One field a variable, without white space around it; an empty variable counts as unset. Secrets never show in ``repr``."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True, str_strip_whitespace=True)

    openai_base_url: str = Field(default=OPENAI_URL, validation_alias="OPENAI_BASE_URL", pattern=r"^https?://")
    """The address before ``/chat/completions`` and ``/embeddings``."""
    openai_api_key: Annotated[SecretStr, AfterValidator(sendable)] | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    hf_token: SecretStr | None = Field(default=None, validation_alias="HF_TOKEN")
    """For weights named by a hub id that is not public."""
    concurrency: int = Field(default=64, validation_alias="MEMALIGN_CONCURRENCY", ge=1)
    """Calls in flight per model and event loop."""
    timeout_seconds: float = Field(default=120.0, validation_alias="MEMALIGN_TIMEOUT_SECONDS", gt=0)
    """The whole of a hosted call, retries and waits between them included."""
    retries: int = Field(default=5, validation_alias="MEMALIGN_RETRIES", ge=1)
    """Attempts of a hosted call, the first included."""
    cache_dir: Path = Field(default_factory=lambda: Path(platformdirs.user_cache_dir("memalign")), validation_alias="MEMALIGN_CACHE_DIR")
    """Where assembled weights lie; made when first needed."""
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, validation_alias="MEMALIGN_THREADS", ge=1)
    """Processor threads of in-process models."""
    context_tokens: int = Field(default=8192, validation_alias="MEMALIGN_CONTEXT_TOKENS", ge=256)
    """The window of in-process chat models."""
    guidelines: int = Field(default=40, validation_alias="MEMALIGN_GUIDELINES", ge=1)
    """Guidelines of a judge that may be active; more are archived, the least useful first."""
    guideline_tokens: int = Field(default=2000, validation_alias="MEMALIGN_GUIDELINE_TOKENS", ge=100)
    """Tokens of all its active guidelines, estimated at four characters each."""
    personal_data: bool = Field(default=False, validation_alias="MEMALIGN_PERSONAL_DATA")
    """Whether guidelines may hold what looks like an e-mail address, a telephone, card or account number."""


def read_settings() -> Settings:
    """The settings as the environment is now. Raises ConfigurationError naming each variable that cannot be used (never its value)."""
    try:
        return Settings()
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_input=False))
        raise ConfigurationError(f"the environment holds unusable settings: {faults}") from None
