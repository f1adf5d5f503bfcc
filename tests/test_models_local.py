"""The in-process chat model: grammar and errors without weights, then the real 1.5B with a few tokens."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from memalign.errors import ConfigurationError, ItemTooLong, MissingExtra, ModelRefused, ModelUnavailable, UnreadableReply
from memalign.models import ChatRequest, Message, open_chat_model
from memalign.models.local import LocalChatModel, _Worker, choices_grammar, local_chat_model
from memalign.models.weights import PINNED, locate_parts

ALIAS = "qwen2.5-coder-1.5b"
SCHEMA = {"type": "object", "properties": {"fruit": {"type": "string"}}, "required": ["fruit"], "additionalProperties": False}


def ask(text: str, **options: object) -> ChatRequest:
    return ChatRequest(messages=(Message("system", "Be terse."), Message("user", text)), **options)  # type: ignore[arg-type]


def test_grammar_escapes_every_choice() -> None:
    assert choices_grammar(("yes", "no")) == 'root ::= "yes" | "no"'
    assert choices_grammar(('a "b"', "c\\d", "e\nf", "é")) == 'root ::= "a \\"b\\"" | "c\\\\d" | "e\\U0000000Af" | "\\U000000E9"'


def test_one_instance_a_name() -> None:
    assert open_chat_model("local/x.gguf") is local_chat_model("x.gguf")
    assert open_chat_model("local//abs/x.gguf").name == "local//abs/x.gguf"


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
def test_wrong_weights_are_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        asyncio.run(LocalChatModel(str(tmp_path / "none.gguf")).complete(ask("hi")))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ConfigurationError, match="cannot load"):
        asyncio.run(LocalChatModel(str(tmp_path / "broken.gguf")).complete(ask("hi")))


def test_the_engine_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtra, match=r"memalign\[local\]"):
        asyncio.run(LocalChatModel(ALIAS).complete(ask("hi")))


class Engine:
    """Stands in for the engine: says the chunks it was given."""

    def __init__(self, *chunks: object) -> None:
        self.chunks = chunks

    def handle_chat_completions(self, body: object, hear: object) -> None:
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            hear(chunk)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("chunk", "error", "words"),
    [
        ({"error": {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 8192}}, ItemTooLong, "9000.*8192"),
        ({"error": {"code": 400, "message": "bad grammar"}}, ModelRefused, "bad grammar"),
        ({"error": {"code": 500, "message": "broken"}}, ModelUnavailable, "broken"),
        (RuntimeError("oops"), ModelUnavailable, "oops"),
        (ValueError("schema"), ModelRefused, "schema"),
        ({"choices": [{"delta": {"content": None}, "finish_reason": "stop"}]}, UnreadableReply, "empty"),
        ({"choices": [{"delta": {}, "finish_reason": "length"}]}, UnreadableReply, "max_tokens=512"),
    ],
)
def test_failures_of_the_engine_are_translated(chunk: object, error: type[Exception], words: str) -> None:
    model = LocalChatModel("x.gguf")
    model._server = Engine(chunk)
    with pytest.raises(error, match=words):
        asyncio.run(model.complete(ask("hi")))


def test_a_label_is_not_worked_out_twice() -> None:
    told = []
    usage = {"prompt_tokens": 9, "completion_tokens": 1}

    class Counting(Engine):
        def handle_chat_completions(self, body: object, hear: object) -> None:
            told.append(body)
            super().handle_chat_completions(body, hear)

    model = LocalChatModel("x.gguf")
    model._server = Counting({"choices": [{"delta": {"content": "yes"}, "finish_reason": "stop"}], "usage": usage})

    async def asked(text: str, **options: object) -> tuple[str, int]:
        reply = await model.complete(ask(text, **options))
        return reply.text, reply.usage.prompt_tokens

    async def main() -> None:
        labels = {"choices": ("yes", "no")}
        assert await asked("a", **labels) == ("yes", 9)
        assert await asked("a", **labels) == ("yes", 0)
        assert len(told) == 1
        await asked("b", **labels)  # another prompt
        await asked("a", choices=("no", "yes"))  # other labels
        await asked("a", **labels, temperature=0.7)  # a warm reply may differ
        await asked("a", **labels, temperature=0.7)
        await asked("a")  # free text
        await asked("a")
        assert len(told) == 7
        await model.aclose()
        model._server = Counting({"choices": [{"delta": {"content": "no"}, "finish_reason": "stop"}], "usage": usage})
        assert await asked("a", **labels) == ("no", 9)

    asyncio.run(main())


def test_the_worker_runs_one_at_a_time_drops_what_is_cancelled_and_stops() -> None:
    worker, go, order = _Worker("test"), threading.Event(), []
    ended = threading.Event()
    worker.at_stop(ended.set)
    first: Future[object] = worker.submit(lambda: go.wait(5))
    second = worker.submit(lambda: order.append("second"))
    third = worker.submit(lambda: order.append("third"))
    assert second.cancel()
    go.set()
    assert first.result(5) is True
    third.result(5)
    assert order == ["third"]
    worker.stop()
    assert ended.wait(5)


@pytest.fixture(scope="module")
def real() -> LocalChatModel:
    try:
        import xllamacpp  # noqa: F401

        locate_parts(PINNED[ALIAS])
    except (ImportError, ConfigurationError) as error:
        pytest.skip(f"no engine or weights: {error}")
    return local_chat_model(ALIAS)


@pytest.mark.model
def test_the_real_model(real: LocalChatModel) -> None:
    question = "Is this polite: 'Go away!' Answer yes or no."

    async def main() -> None:
        reply = await real.complete(ask(question, choices=("yes", "no"), top_logprobs=8, max_tokens=3))
        assert reply.text in {"yes", "no"}
        assert reply.logprobs is not None
        assert len(reply.logprobs[0].top) == 8
        assert reply.usage.prompt_tokens > 10
        assert reply.seconds > 0
        again = await real.complete(ask(question, choices=("yes", "no"), max_tokens=3))
        assert again.text == reply.text
        assert again.usage.cached_tokens >= reply.usage.prompt_tokens - 2
        fruit = await real.complete(ask("Name a fruit.", schema=SCHEMA, max_tokens=24))
        assert set(json.loads(fruit.text)) == {"fruit"}
        with pytest.raises(ItemTooLong, match="tokens, the window"):
            await real.complete(ask("a b " * 10_000))
        cancelled = asyncio.create_task(real.complete(ask("word " * 3000)))
        await asyncio.sleep(0.5)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await real.aclose()

    asyncio.run(main())


INTERRUPTED = """
import asyncio, os, signal
from memalign.models import ChatRequest, Message
from memalign.models.local import LocalChatModel

async def main():
    model = LocalChatModel({path!r}, context_tokens=2048)
    await model.complete(ChatRequest(messages=(Message("user", "hi"),), max_tokens=1))
    print("ready", flush=True)
    await asyncio.gather(*(model.complete(ChatRequest(messages=(Message("user", f"{{n}} word " * 600),))) for n in range(20)))

asyncio.run(main())
"""


@pytest.mark.model
def test_an_interrupt_ends_the_process_within_the_call_in_hand(real: LocalChatModel) -> None:
    from memalign.models.weights import find_weights

    script = INTERRUPTED.format(path=str(find_weights(ALIAS)))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(1)
        process.send_signal(2)
        _, said = process.communicate(timeout=90)
    finally:
        process.kill()
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode in {-2, 130}
