"""A chat model that asks through MLflow's model adapters, so that its gateway, credentials, tools and cost metadata keep working."""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Annotated, Any

import pydantic
from mlflow.entities.assessment import Feedback
from mlflow.entities.trace import Trace
from mlflow.environment_variables import MLFLOW_GENAI_OPTIMIZE_MAX_WORKERS
from mlflow.exceptions import MlflowException
from mlflow.genai.judges import Judge
from mlflow.genai.judges.utils import invoke_judge_model
from mlflow.tracing.constant import AssessmentMetadataKey
from mlflow.types.llm import ChatMessage
from pydantic import WithJsonSchema

from memalign.errors import ItemTooLong, MemalignError, ModelRefused, ModelUnavailable, UnreadableReply
from memalign.models import ChatModel, ChatReply, ChatRequest
from memalign.records import Usage

JUDGING_THREADS = 64
DISTILLING_THREADS = 16

_RESULT = "result"
"""The field of a reply that MLflow's adapters read; ours is ``verdict``."""

_TOOLS = (
    "The trace itself stands behind tools. Before you decide, look with them at what the instructions ask about: the trace as a whole, its steps "
    "with their inputs and outputs, or a search for words. The tools know which trace is meant. What you do with them is not what you judge."
)
_COUNTED = {name: getattr(AssessmentMetadataKey, name, None) for name in ("JUDGE_INPUT_TOKENS", "JUDGE_OUTPUT_TOKENS", "JUDGE_COST")}
"""Metadata that add up over several calls; an older MLflow lacks some of them."""


@dataclass(slots=True)
class Asked:
    """One judgement: the trace that the model may look into, and the answers of MLflow's adapters."""

    trace: Trace | None = None
    answers: list[Feedback] = field(default_factory=list)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the adapters noted: tokens and cost are sums over all calls."""
        noted: dict[str, Any] = {}
        for answer in self.answers:
            for name, value in (answer.metadata or {}).items():
                noted[name] = noted[name] + value if name in noted and name in _COUNTED.values() else value
        return noted


_asked: contextvars.ContextVar[Asked | None] = contextvars.ContextVar("memalign_mlflow_asked", default=None)


@contextmanager
def asking(trace: Trace | None) -> Iterator[Asked]:
    """Model calls made inside belong to one judgement; each thread and task has its own."""
    asked = Asked(trace)
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


def judging_model(judge: Judge) -> str | ChatModel:
    """The model of an MLflow judge, with its inference parameters, address and headers."""
    return _model(
        judge.model,
        judge.name,
        JUDGING_THREADS,
        inference_params=getattr(judge, "inference_params", None),
        base_url=getattr(judge, "_base_url", None),
        extra_headers=getattr(judge, "_extra_headers", None),
    )


def distilling_model(uri: str) -> str | ChatModel:
    """The model that distils guidelines; MLFLOW_GENAI_OPTIMIZE_MAX_WORKERS bounds its calls at once, when it is set."""
    chosen = MLFLOW_GENAI_OPTIMIZE_MAX_WORKERS.get() if MLFLOW_GENAI_OPTIMIZE_MAX_WORKERS.is_set() else DISTILLING_THREADS
    return _model(uri, "memalign", chosen)


def plain_name(uri: str) -> str:
    """``openai:/gpt-4.1-mini`` -> ``openai/gpt-4.1-mini``; a name without a provider is a provider's default model."""
    provider, separator, model = uri.partition(":/")
    return f"{provider}/{model.lstrip('/')}" if separator else uri if "/" in uri else f"{uri}/{uri}"


def _model(uri: str, subject: str, threads: int, **settings: Any) -> str | ChatModel:
    name = plain_name(uri)
    if name.startswith("local/"):
        return name
    return MLflowChatModel(uri, subject, threads, {key: value for key, value in settings.items() if value is not None})


class MLflowChatModel:
    """``invoke_judge_model`` behind the ChatModel protocol. MLflow does the retries and the parsing; temperature and limits are the judge's own."""

    def __init__(self, uri: str, subject: str, threads: int, settings: Mapping[str, Any]) -> None:
        self.uri = uri
        self.subject = subject
        self.threads = threads
        self.settings = dict(settings)

    @property
    def name(self) -> str:
        """``provider/model``."""
        return plain_name(self.uri)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MLflowChatModel) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.uri, self.subject))

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Answer one request. Raises ModelRefused, ModelUnavailable, ItemTooLong, UnreadableReply."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(_threads(self.threads), context.run, self._complete, request)

    async def aclose(self) -> None:
        """Nothing to give back."""

    def _complete(self, request: ChatRequest) -> ChatReply:
        asked = _asked.get()
        trace = asked.trace if asked is not None else None
        schema = dict(request.schema or {"type": "string"})
        judging = "verdict" in schema.get("properties", {})
        try:
            answer = invoke_judge_model(
                model_uri=self.uri,
                prompt=_messages(request, judging=judging, tools=trace is not None),
                assessment_name=self.subject,
                trace=trace,
                response_format=_reply_form(json.dumps(schema["properties"]["verdict"] if judging else schema), reasoned=judging),
                **self.settings,
            )
        except Exception as error:  # MLflow's adapters raise what their libraries raise
            raise _translated(self.name, error) from error
        if answer.error is not None:
            raise ModelUnavailable(f"{self.name}: {answer.error.error_message or answer.error.error_code}")
        if asked is not None:
            asked.answers.append(answer)
        said = {"rationale": answer.rationale or "", "verdict": answer.value} if judging else answer.value
        return ChatReply(text=said if isinstance(said, str) else json.dumps(said, ensure_ascii=False), usage=_usage(answer.metadata or {}))


def _messages(request: ChatRequest, *, judging: bool, tools: bool) -> list[ChatMessage]:
    """The messages in the words of MLflow's adapters, which read the field ``result`` of a reply."""
    found = []
    for place, message in enumerate(request.messages):
        content = message.content if message.role == "user" else message.content.replace('"verdict"', f'"{_RESULT}"')
        if place == 0 and not judging:
            content += f'\n\nReply with a JSON object that holds this JSON as its field "{_RESULT}".'
        if place == 0 and tools:
            content += f"\n\n{_TOOLS}"
        found.append(ChatMessage(role=message.role, content=content))
    return found


@lru_cache(maxsize=64)
def _reply_form(schema: str, *, reasoned: bool) -> type[pydantic.BaseModel]:
    """The reply's form as MLflow takes it: a pydantic model, whose ``result`` has our JSON schema. ``reasoned``: it says why, first."""
    result = Annotated[Any, WithJsonSchema(json.loads(schema))]
    fields: dict[str, Any] = {"rationale": (str, ...)} if reasoned else {}
    fields[_RESULT] = (result, ...)
    return pydantic.create_model("Reply", **fields)


def _usage(metadata: Mapping[str, Any]) -> Usage:
    counted = [int(metadata.get(_COUNTED[name] or "") or 0) for name in ("JUDGE_INPUT_TOKENS", "JUDGE_OUTPUT_TOKENS")]
    return Usage(calls=1, prompt_tokens=counted[0], completion_tokens=counted[1])


def _translated(name: str, error: Exception) -> MemalignError:
    said = f"{name}: {error}"
    if isinstance(error, KeyError | pydantic.ValidationError) or "Failed to parse" in said or "parse JSON" in said:
        return UnreadableReply(f"{said[:500]} (no field {_RESULT!r} in the reply)" if isinstance(error, KeyError) else said[:500])
    if "context window" in said.lower() or "context length" in said.lower():
        return ItemTooLong(said)
    if isinstance(error, MlflowException) and error.error_code in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE"):
        return ModelRefused(said)
    return ModelUnavailable(said)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="memalign-mlflow")
