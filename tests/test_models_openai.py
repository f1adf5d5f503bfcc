"""The OpenAI-compatible chat model against a real endpoint that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import email.utils
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from endpoint import ScriptedEndpoint, completion, fault, tool_call
from memalign.errors import ConfigurationError, ItemTooLong, ModelRefused, ModelUnavailable, UnreadableReply
from memalign.models import ChatReply, ChatRequest, Message, open_chat_model
from memalign.models.http import Endpoint, _Transient
from memalign.models.openai import OpenAIChatModel
from memalign.records import Usage

KEY = "sk-very-secret-0123456789"
SCHEMA = {"type": "object", "properties": {"verdict": {"type": "boolean"}}, "required": ["verdict"], "additionalProperties": False}
QUESTION = (Message("system", "You judge."), Message("user", "Is it good?"))
ASK = ChatRequest(messages=QUESTION)
ASK_JSON = ChatRequest(messages=QUESTION, schema=SCHEMA)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MEMALIGN_CONCURRENCY", "MEMALIGN_TIMEOUT_SECONDS", "MEMALIGN_RETRIES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint() as running:
        yield running


def use(endpoint: ScriptedEndpoint, work: Callable[[OpenAIChatModel], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        model = OpenAIChatModel("m", base_url=endpoint.url, api_key=KEY, **{"timeout_seconds": 10, **options})
        model._endpoint._backoff.multiplier = 0.01
        try:
            return await work(model)
        finally:
            await model.aclose()

    return asyncio.run(main())


def ask(endpoint: ScriptedEndpoint, request: ChatRequest = ASK, **options: Any) -> ChatReply:
    reply: ChatReply = use(endpoint, lambda model: model.complete(request), **options)
    return reply


def test_a_reply_with_usage_and_the_request_it_came_from(endpoint: ScriptedEndpoint) -> None:
    reply = ask(endpoint)
    assert (reply.text, reply.finish_reason, reply.logprobs) == ("ok", "stop", None)
    assert (reply.usage.calls, reply.usage.prompt_tokens, reply.usage.cached_tokens, reply.usage.completion_tokens) == (1, 11, 7, 3)
    assert reply.seconds > 0
    asked = endpoint.requests[0]
    assert asked.path == "chat/completions"
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "model": "m",
        "messages": [{"role": "system", "content": "You judge."}, {"role": "user", "content": "Is it good?"}],
        "max_tokens": 512,
        "temperature": 0.0,
    }


def test_429_waits_as_long_as_the_server_asks(endpoint: ScriptedEndpoint) -> None:
    endpoint.then(429, headers={"Retry-After": "0.4"})
    started = time.monotonic()
    assert ask(endpoint).text == "ok"
    assert time.monotonic() - started >= 0.4
    assert len(endpoint.requests) == 2


def test_retry_after_as_a_date(endpoint: ScriptedEndpoint) -> None:
    endpoint.then(503, headers={"Retry-After": email.utils.formatdate(time.time() + 2, usegmt=True)})
    started = time.monotonic()
    assert ask(endpoint).text == "ok"
    assert 0.8 <= time.monotonic() - started < 4


def test_a_wait_beyond_the_time_limit_is_not_begun(endpoint: ScriptedEndpoint) -> None:
    endpoint.then(429, headers={"Retry-After": "3600"})
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="429") as caught:
        ask(endpoint)
    assert caught.value.attempts == 1
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("trouble", [{"status": 500}, {"drop": True}, {"cut": True}, {"body": b'{"choices": ['}, {"body": fault("busy", code=529)}])
def test_passing_trouble_is_retried(endpoint: ScriptedEndpoint, trouble: dict[str, Any]) -> None:
    endpoint.then(**trouble).then(**trouble)
    assert ask(endpoint).text == "ok"
    assert len(endpoint.requests) == 3


def test_trouble_that_stays_names_address_status_and_attempts(endpoint: ScriptedEndpoint) -> None:
    for _ in range(3):
        endpoint.then(502, b"bad gateway")
    with pytest.raises(ModelUnavailable, match=r"127\.0\.0\.1.*3 attempts.*502 bad gateway.*OPENAI_BASE_URL") as caught:
        ask(endpoint, retries=3)
    assert caught.value.attempts == 3
    assert caught.value.retryable


def test_nobody_listens() -> None:
    async def main() -> None:
        model = OpenAIChatModel("m", base_url="http://127.0.0.1:9/v1", retries=1)
        with pytest.raises(ModelUnavailable, match="1 attempt and"):
            await model.complete(ASK)
        await model.aclose()

    asyncio.run(main())


def test_the_total_time_holds_over_all_attempts(endpoint: ScriptedEndpoint) -> None:
    endpoint.delay_seconds = 30
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="timed out"):
        ask(endpoint, timeout_seconds=0.6)
    assert 0.3 <= time.monotonic() - started < 2
    assert len(endpoint.requests) >= 1


def test_a_missing_key_is_told_before_anything_is_sent() -> None:
    async def main() -> None:
        await open_chat_model("openai/gpt-4.1-mini").complete(ASK)

    with pytest.raises(ConfigurationError, match="set OPENAI_API_KEY"):
        asyncio.run(main())


def test_white_space_around_key_and_address_is_no_part_of_them(endpoint: ScriptedEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f" {endpoint.url}/\n")
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")

    async def main() -> None:
        for model in (OpenAIChatModel("m"), OpenAIChatModel("m", base_url=f"{endpoint.url}\n", api_key=f" {KEY}\n")):
            await model.complete(ASK)
            await model.aclose()

    asyncio.run(main())
    assert [asked.headers["Authorization"] for asked in endpoint.requests] == [f"Bearer {KEY}"] * 2


def test_a_key_of_white_space_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "\n")
    with pytest.raises(ConfigurationError, match="no API key"):
        asyncio.run(OpenAIChatModel("m").complete(ASK))


@pytest.mark.parametrize("key", ["sk-very\nsecret", "sk-very\x7fsecret"])
def test_a_key_that_no_header_can_hold_is_told_without_it(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    choices: list[dict[str, Any]] = [{}, {"api_key": key}]
    for options in choices:
        with pytest.raises(ConfigurationError, match=r"OPENAI_API_KEY.*control character") as caught:
            OpenAIChatModel("m", **options)
        assert "secret" not in f"{caught.value!r}{caught.value.__cause__!r}{caught.value.__context__!r}"


@pytest.mark.parametrize("address", ["http://u:secret@h:99999/v1", "http://[::1/v1", "http://h:notaport/v1", "https://"])
def test_an_address_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    with pytest.raises(ConfigurationError, match=r"https://host/v1; check OPENAI_BASE_URL") as caught:
        OpenAIChatModel("m")
    assert "secret" not in str(caught.value)


def test_a_proxy_whose_address_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:99999")
    with pytest.raises(ConfigurationError, match=r"Port out of range.*check OPENAI_BASE_URL and the proxies"):
        asyncio.run(OpenAIChatModel("m", base_url="http://models.example/v1").complete(ASK))


def test_another_address_needs_no_key(endpoint: ScriptedEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)

    async def main() -> str:
        model = open_chat_model("openai/any")
        try:
            return (await model.complete(ASK)).text
        finally:
            await model.aclose()

    assert asyncio.run(main()) == "ok"
    assert "Authorization" not in endpoint.requests[0].headers


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (401, fault(f"Incorrect API key provided: {KEY}."), "set OPENAI_API_KEY"),
        (403, fault("no"), "may not use this model"),
        (404, fault("no such model"), "model's name and OPENAI_BASE_URL"),
        (400, fault("bad"), "does not accept"),
        (422, {"detail": [{"loc": ["body", "x"], "msg": "extra"}]}, "does not accept"),
        (429, fault("You exceeded your quota", code="insufficient_quota"), "quota"),
        (307, b"", "OPENAI_BASE_URL"),
    ],
)
def test_refusals_are_not_retried_and_give_advice(endpoint: ScriptedEndpoint, status: int, body: Any, advice: str) -> None:
    endpoint.then(status, body)
    with pytest.raises(ModelRefused, match=f"(?s){status}.*{advice}") as caught:
        ask(endpoint)
    assert KEY not in f"{caught.value!r}{caught.value}{caught.value.__cause__!r}{caught.value.__context__!r}"
    assert len(endpoint.requests) == 1


def test_the_key_is_never_in_messages_of_retried_failures(endpoint: ScriptedEndpoint) -> None:
    for _ in range(2):
        endpoint.then(500, fault(f"crashed with {KEY}"))
    with pytest.raises(ModelUnavailable) as caught:
        ask(endpoint, retries=2)
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)
    assert KEY not in repr(vars(Endpoint(base_url=endpoint.url, api_key=KEY)))


def test_a_web_page_is_not_an_endpoint(endpoint: ScriptedEndpoint) -> None:
    endpoint.then(200, b"<html>hello</html>", headers={"Content-Type": "text/html"})
    with pytest.raises(ModelRefused, match="answered 200: a web page, not an API; check the model's name and OPENAI_BASE_URL"):
        ask(endpoint)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, fault("too many tokens", code="context_length_exceeded")),
        (400, fault("request exceeds", type="exceed_context_size_error", code=400)),
        (400, {"object": "error", "message": "This model's maximum context length is 4096 tokens.", "code": 400}),
        (413, b"entity too large"),
    ],
)
def test_what_does_not_fit_is_named(endpoint: ScriptedEndpoint, status: int, body: Any) -> None:
    endpoint.then(status, body)
    with pytest.raises(ItemTooLong, match="window"):
        ask(endpoint)
    assert len(endpoint.requests) == 1


def test_structured_output_by_schema(endpoint: ScriptedEndpoint) -> None:
    endpoint.chat = lambda body: '{"verdict": true}'
    assert json.loads(ask(endpoint, ASK_JSON).text) == {"verdict": True}
    asked = endpoint.requests[0].body["response_format"]
    assert asked == {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": SCHEMA}}


def test_a_fence_around_what_was_asked_for_is_taken_off(endpoint: ScriptedEndpoint) -> None:
    endpoint.chat = lambda body: '```json\n{"verdict": true}\n```'
    assert ask(endpoint, ASK_JSON).text == '{"verdict": true}'
    assert ask(endpoint).text.startswith("```"), "where no JSON was asked for, a fence is part of the text"
    assert len(endpoint.requests) == 2


def test_structured_output_by_tool_is_found_once_and_remembered(endpoint: ScriptedEndpoint) -> None:
    endpoint.then(400, fault("Unknown parameter: 'response_format'"))
    endpoint.chat = lambda body: tool_call('{"verdict": false}')

    async def twice(model: OpenAIChatModel) -> list[str]:
        return [(await model.complete(ASK_JSON)).text for _ in range(2)]

    assert use(endpoint, twice) == ['{"verdict": false}'] * 2
    assert ["tools" in asked.body for asked in endpoint.requests] == [False, True, True]
    assert endpoint.requests[1].body["tool_choice"] == {"type": "function", "function": {"name": "reply"}}


def test_structured_output_in_words_is_the_last_resort(endpoint: ScriptedEndpoint) -> None:
    endpoint.then(422, {"detail": "response_format: extra fields not permitted"}).then(400, fault("tools are not supported"))
    endpoint.chat = lambda body: '```json\n{"verdict": true}\n```'

    async def both(model: OpenAIChatModel) -> list[str]:
        return [(await model.complete(request)).text for request in (ASK_JSON, ASK_JSON, ASK)]

    assert use(endpoint, both) == ['{"verdict": true}'] * 2 + ['```json\n{"verdict": true}\n```']
    words = endpoint.requests[2].body["messages"]
    assert words[0]["content"] == "You judge."
    assert words[1]["content"].startswith("Is it good?\n\nReply with one JSON object")
    assert json.dumps(SCHEMA) in words[1]["content"]
    assert len(endpoint.requests) == 5
    assert ASK_JSON.messages == QUESTION


@pytest.mark.parametrize("tools", [True, False])
def test_an_endpoint_that_pays_no_heed_to_the_schema_is_asked_otherwise(endpoint: ScriptedEndpoint, tools: bool) -> None:
    """Some take response_format, or tools, and answer as if they had never seen it."""

    def chat(body: dict[str, Any]) -> str | dict[str, Any]:
        if "tools" in body and tools:
            return tool_call('{"verdict": true}')
        return '{"verdict": true}' if "JSON schema" in body["messages"][-1]["content"] else "Well, it is good."

    endpoint.chat = chat

    async def twice(model: OpenAIChatModel) -> list[ChatReply]:
        return [await model.complete(ASK_JSON) for _ in range(2)]

    first, second = use(endpoint, twice)
    assert first.text == second.text == '{"verdict": true}'
    asked = 2 if tools else 3
    assert (first.usage.calls, first.usage.prompt_tokens, second.usage.calls) == (asked, 11 * asked, 1), "what was in vain is counted"


def test_one_reply_without_form_from_an_endpoint_that_knows_better_changes_nothing(endpoint: ScriptedEndpoint) -> None:
    endpoint.then(200, completion('{"verdict": true}')).then(200, completion("Well.")).then(200, completion('{"verdict": false}'))

    async def thrice(model: OpenAIChatModel) -> list[str]:
        return [(await model.complete(ASK_JSON)).text for _ in range(3)]

    assert use(endpoint, thrice) == ['{"verdict": true}', "Well.", '{"verdict": false}']
    assert all("response_format" in asked.body for asked in endpoint.requests)


def test_the_wait_that_a_server_asks_for_is_never_shortened_and_differs_from_call_to_call(endpoint: ScriptedEndpoint) -> None:
    state: Any = SimpleNamespace(outcome=SimpleNamespace(exception=lambda: _Transient("429", 20.0)))
    waits = [Endpoint(base_url=endpoint.url)._wait_seconds(state) for _ in range(50)]
    assert 20 <= min(waits) < 21 < max(waits) <= 22.1


def test_many_calls_at_once_learn_the_same_lesson(endpoint: ScriptedEndpoint) -> None:
    def chat(body: dict[str, Any]) -> dict[str, Any]:
        return tool_call('{"verdict": true}')

    endpoint.chat = chat
    for _ in range(8):
        endpoint.then(400, fault("response_format is not supported"), delay_seconds=0.05)

    async def burst(model: OpenAIChatModel) -> set[str]:
        replies = await asyncio.gather(*(model.complete(ASK_JSON) for _ in range(8)))
        assert model._dialect.structured == "tool"
        return {reply.text for reply in replies}

    assert use(endpoint, burst) == {'{"verdict": true}'}
    assert len(endpoint.requests) == 16


def test_log_probabilities(endpoint: ScriptedEndpoint) -> None:
    tokens = [{"token": "yes", "logprob": -0.1, "top_logprobs": [{"token": "yes", "logprob": -0.1}, {"token": "no", "logprob": -2.4}]}]
    endpoint.chat = lambda body: completion("yes", logprobs={"content": tokens})
    reply = ask(endpoint, ChatRequest(messages=QUESTION, choices=("yes", "no"), top_logprobs=50, max_tokens=1))
    assert reply.logprobs is not None
    assert reply.logprobs[0].top == (("yes", -0.1), ("no", -2.4))
    assert endpoint.requests[0].body["top_logprobs"] == 20
    assert "response_format" not in endpoint.requests[0].body


def test_refused_options_are_left_out_and_remembered(endpoint: ScriptedEndpoint) -> None:
    endpoint.then(400, fault("'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."))
    endpoint.then(400, fault("You are not allowed to request logprobs from this model"))
    endpoint.then(400, fault("Unsupported value", param="temperature"))
    request = ChatRequest(messages=QUESTION, top_logprobs=5, max_tokens=9)

    async def twice(model: OpenAIChatModel) -> list[ChatReply]:
        return [await model.complete(request) for _ in range(2)]

    replies = use(endpoint, twice)
    assert [reply.logprobs for reply in replies] == [None, None]
    assert len(endpoint.requests) == 5
    for asked in endpoint.requests[3:]:
        assert set(asked.body) == {"model", "messages", "max_completion_tokens"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"choices": []}, "no message"),
        ({"object": "x"}, "no message"),
        (completion(None), "empty"),
        (completion(None, refusal="I cannot help with that"), "declined"),
        (completion("", finish_reason="length"), "max_tokens=512 was used up"),
        (completion("half", finish_reason="content_filter"), "content filter"),
        ({"choices": [{"message": "text"}]}, "no message"),
    ],
)
def test_unreadable_replies(endpoint: ScriptedEndpoint, answer: dict[str, Any], reason: str) -> None:
    endpoint.then(200, answer)
    with pytest.raises(UnreadableReply, match=reason) as caught:
        ask(endpoint)
    if "usage" in answer:
        assert caught.value.usage == Usage(calls=1, prompt_tokens=11, cached_tokens=7, completion_tokens=3)


def test_a_cut_reply_says_so(endpoint: ScriptedEndpoint) -> None:
    endpoint.then(200, completion("half a sen", finish_reason="length"))
    assert ask(endpoint).finish_reason == "length"


def test_content_in_parts(endpoint: ScriptedEndpoint) -> None:
    endpoint.then(200, completion(None) | {"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}]})
    assert ask(endpoint).text == "ab"


def test_a_cancelled_call_ends_at_once(endpoint: ScriptedEndpoint) -> None:
    endpoint.delay_seconds = 30

    async def cancel(model: OpenAIChatModel) -> float:
        task = asyncio.create_task(model.complete(ASK))
        await asyncio.sleep(0.2)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - started

    assert use(endpoint, cancel, timeout_seconds=60) < 0.2
    assert len(endpoint.requests) == 1


def test_calls_in_flight_are_limited_and_waiting_is_not_timed(endpoint: ScriptedEndpoint) -> None:
    endpoint.delay_seconds = 0.1

    async def burst(model: OpenAIChatModel) -> int:
        return len(await asyncio.gather(*(model.complete(ASK) for _ in range(20))))

    assert use(endpoint, burst, concurrency=3, timeout_seconds=0.5) == 20
    assert endpoint.most_in_flight == 3


def test_one_model_serves_loops_one_after_another(endpoint: ScriptedEndpoint) -> None:
    model = OpenAIChatModel("m", base_url=endpoint.url)

    async def once() -> str:
        try:
            return (await model.complete(ASK)).text
        finally:
            await model.aclose()

    assert [asyncio.run(once()) for _ in range(3)] == ["ok"] * 3
    assert not model._endpoint._lanes


@pytest.mark.parametrize("background", [True, False])
def test_a_process_that_closes_nothing_ends_quietly(endpoint: ScriptedEndpoint, background: bool) -> None:
    script = (
        "import asyncio, sys, threading\n"
        "from memalign.models import ChatRequest, Message\n"
        "from memalign.models.openai import OpenAIChatModel\n"
        "model, ask = OpenAIChatModel('m', base_url=sys.argv[1]), ChatRequest(messages=(Message('user', 'hi'),))\n"
        "if sys.argv[2] == 'True':\n"
        "    loop = asyncio.new_event_loop()\n"
        "    threading.Thread(target=loop.run_forever, daemon=True).start()\n"
        "    asyncio.run_coroutine_threadsafe(model.complete(ask), loop).result()\n"
        "else:\n"
        "    for _ in range(3): asyncio.run(model.complete(ask))\n"
        "    assert len(model._endpoint._lanes) == 1\n"
    )
    command = [sys.executable, "-c", script, endpoint.url, str(background)]
    ended = subprocess.run(command, env={"PYTHONPATH": ":".join(filter(None, sys.path))}, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_bad_settings_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMALIGN_RETRIES", "many")
    with pytest.raises(ConfigurationError, match="MEMALIGN_RETRIES"):
        OpenAIChatModel("m")
    monkeypatch.delenv("MEMALIGN_RETRIES")
    with pytest.raises(ConfigurationError, match="https://host/v1"):
        OpenAIChatModel("m", base_url="localhost:8000")
