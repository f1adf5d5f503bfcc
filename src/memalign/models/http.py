"""JSON over HTTP to an OpenAI-compatible endpoint: one place for connections, retries, time limits and what a refusal means."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import random
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import aiohttp
from pydantic import SecretStr
from pydantic_core import from_json
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, stop_before_delay, wait_random_exponential
from yarl import URL

from memalign.errors import ConfigurationError, ItemTooLong, MemalignError, ModelRefused, ModelUnavailable

CONNECT_SECONDS = 10.0
DETAIL_CHARACTERS = 500
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
TOO_LONG_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
TOO_LONG_WORDS = ("maximum context length", "available context size", "prompt is too long", "exceeds the context window")
ADVICE = {
    400: "the endpoint does not accept this request",
    401: "set OPENAI_API_KEY to a valid key",
    403: "the key may not use this model; check OPENAI_API_KEY and the account's rights",
    404: "check the model's name and OPENAI_BASE_URL",
    422: "the endpoint does not accept this request",
    429: "the account's quota is used up; check its plan and billing",
}


class EndpointRefused(ModelRefused):
    """A refusal with its parts, so that an adapter can see which option of the request was not liked."""

    def __init__(self, message: str, *, status: int, detail: str) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail


class _Transient(Exception):
    """One attempt failed in a way that another may cure. ``wait_seconds`` is what the server asked for."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True, slots=True)
class _Lane:
    """What belongs to one event loop."""

    session: aiohttp.ClientSession
    slots: asyncio.Semaphore


class Endpoint:
    """Posts JSON and returns JSON, from any number of event loops.

    At most ``concurrency`` calls of a loop are in flight; waiting for a slot does not count towards ``timeout_seconds``, attempts and the
    waits between them do. A call holds its slot while it waits to retry, so a throttled endpoint is not asked even more.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | SecretStr | None = None,
        concurrency: int | None = None,
        timeout_seconds: float | None = None,
        retries: int | None = None,
        first_wait_seconds: float = 0.5,
    ) -> None:
        """Unset arguments come from the environment. Raises ConfigurationError for a bad address or setting; opens nothing."""
        from memalign.settings import read_settings, sendable

        settings = read_settings()
        self.url = _address(base_url or settings.openai_base_url)
        given = SecretStr(api_key.strip()) if isinstance(api_key, str) else api_key
        self._key = sendable(given) if given else settings.openai_api_key
        self.concurrency = concurrency or settings.concurrency
        self.timeout_seconds = timeout_seconds or settings.timeout_seconds
        self.retries = retries or settings.retries
        self._backoff = wait_random_exponential(multiplier=first_wait_seconds, max=30)
        self._lanes: dict[asyncio.AbstractEventLoop, _Lane] = {}
        weakref.finalize(self, _give_back, self._lanes)

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The endpoint's answer to ``body``.

        Raises ModelUnavailable after all attempts or the total time, EndpointRefused (a ModelRefused), ItemTooLong, or ConfigurationError
        when the public OpenAI address is used without a key. Cancellation passes through at once.
        """
        if not self._key and self.url.host == "api.openai.com":
            raise ConfigurationError("no API key: set OPENAI_API_KEY, or OPENAI_BASE_URL for an endpoint that needs none")
        lane = self._lane()
        address = self.url / path
        attempts, last, started = 0, "no answer in time", time.monotonic()
        async with lane.slots:
            started = time.monotonic()
            try:
                async with asyncio.timeout(self.timeout_seconds):
                    async for attempt in self._attempts():
                        with attempt:
                            attempts += 1
                            try:
                                return await self._attempt(lane.session, address, body)
                            except _Transient as failure:
                                last = str(failure)
                                raise
            except (_Transient, TimeoutError):
                pass
        raise ModelUnavailable(
            f"{_shown(address)} gave no answer in {attempts} attempt{'s' * (attempts != 1)} and {time.monotonic() - started:.1f} s "
            f"(last: {last}); try again later, check OPENAI_BASE_URL, or raise MEMALIGN_RETRIES or MEMALIGN_TIMEOUT_SECONDS",
            attempts=attempts,
        )

    async def aclose(self) -> None:
        """Close the running loop's connections and forget those of closed loops; the endpoint may be used again."""
        self._forget_closed_loops()
        if lane := self._lanes.pop(asyncio.get_running_loop(), None):
            await lane.session.close()

    def _attempts(self) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception_type(_Transient),
            wait=self._wait_seconds,
            stop=stop_after_attempt(self.retries) | stop_before_delay(self.timeout_seconds),
            reraise=True,
        )

    def _wait_seconds(self, state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        asked = failure.wait_seconds if isinstance(failure, _Transient) else None
        # Never sooner than asked; and not all at once, when many were sent away with the same words.
        return self._backoff(state) if asked is None else asked + random.uniform(0, 0.1 + asked / 10)

    async def _attempt(self, session: aiohttp.ClientSession, address: URL, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            async with session.post(address, json=body, headers=self._headers(), allow_redirects=False) as response:
                content = await response.read()
        except TimeoutError:
            raise _Transient("the attempt timed out") from None
        except (ValueError, aiohttp.ClientSSLError) as error:  # of an address or a proxy that is none
            advice = "check OPENAI_BASE_URL and the proxies of the environment"
            raise ConfigurationError(self._redacted(f"cannot use {_shown(address)}: {error}; {advice}")) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Transient(self._redacted(f"{type(error).__name__}: {error}")) from None
        status, headers = response.status, response.headers
        if status == 200:
            return self._answer(address, content, headers)
        raise self._failure(address, status, _parsed(content), content, headers)

    def _answer(self, address: URL, content: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        answer = _parsed(content)
        if answer is None:
            if "html" in headers.get("Content-Type", ""):
                page = "a web page, not an API"
                raise EndpointRefused(f"{_shown(address)} answered 200: {page}; {ADVICE[404]}", status=200, detail=page)
            raise _Transient("status 200 with a body that is cut short or not a JSON object")
        fault = answer.get("error")
        if not fault:
            return answer
        code = fault.get("code") if isinstance(fault, dict) else None
        raise self._failure(address, code if isinstance(code, int) and code >= 400 else 502, answer, content, headers)

    def _failure(
        self, address: URL, status: int, answer: dict[str, Any] | None, content: bytes, headers: Mapping[str, str]
    ) -> MemalignError | _Transient:
        """What a status other than success means: an error to raise."""
        code, said = _fault(answer)
        detail = self._redacted(said or content.decode("utf-8", "replace"))[:DETAIL_CHARACTERS].strip()
        if status == 413 or code in TOO_LONG_CODES or (status in {400, 422} and any(words in detail.lower() for words in TOO_LONG_WORDS)):
            return ItemTooLong(f"the request does not fit the model's window: {detail}; shorten the item or choose another model")
        if (status in RETRIED and code != "insufficient_quota") or status > 501:
            return _Transient(f"status {status} {detail}".rstrip(), _retry_after_seconds(headers))
        advice = ADVICE.get(status, "check OPENAI_BASE_URL")
        message = f"{_shown(address)} answered {status}: {detail or 'no reason given'}; {advice}"
        return EndpointRefused(message, status=status, detail=detail)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}

    def _redacted(self, text: str) -> str:
        """Servers quote keys in their messages, whole or with the middle left out; the whole one is replaced here."""
        key = self._key.get_secret_value() if self._key else ""
        return text.replace(key, "***") if key else text

    def _lane(self) -> _Lane:
        loop = asyncio.get_running_loop()
        if (lane := self._lanes.get(loop)) is None:
            self._forget_closed_loops()
            # Half of the total for one attempt: a hanging connection leaves time for a second try.
            limits = aiohttp.ClientTimeout(total=self.timeout_seconds / 2, sock_connect=CONNECT_SECONDS)
            connector = aiohttp.TCPConnector(limit=self.concurrency)
            session = aiohttp.ClientSession(connector=connector, timeout=limits, trust_env=not _is_loopback(self.url.host))
            lane = self._lanes[loop] = _Lane(session, asyncio.Semaphore(self.concurrency))
        return lane

    def _forget_closed_loops(self) -> None:
        # A session refers to its loop, so a weak mapping from loops would never let go of either.
        for loop in [loop for loop in self._lanes if loop.is_closed()]:
            _drop(self._lanes.pop(loop))


def _address(text: str) -> URL:
    """The address before the paths. Raises ConfigurationError when it is none, without it where it cannot be told which part may be secret."""
    try:
        address = URL(text.strip().rstrip("/"))
    except ValueError:
        raise ConfigurationError("the endpoint's address is not of the form https://host/v1; check OPENAI_BASE_URL") from None
    if address.scheme not in {"http", "https"} or not address.host:
        raise ConfigurationError(f"the address {_shown(address)!r} is not of the form https://host/v1; check OPENAI_BASE_URL")
    return address


def _shown(address: URL) -> str:
    """The address without user, password and query, which may be secrets."""
    return str(address.with_user(None).with_query(None)) if address.host else str(address)


def _give_back(lanes: dict[asyncio.AbstractEventLoop, _Lane]) -> None:
    """Close what a forgotten endpoint, or the end of the process, left open."""
    while lanes:
        loop, lane = lanes.popitem()
        if loop.is_closed():
            _drop(lane)
        elif not loop.is_running():
            loop.run_until_complete(lane.session.close())
        else:
            closing = asyncio.run_coroutine_threadsafe(lane.session.close(), loop)
            if asyncio._get_running_loop() is not loop:
                with contextlib.suppress(TimeoutError):
                    closing.result(timeout=1)


def _drop(lane: _Lane) -> None:
    """Close a session whose loop is closed: the loop cannot run the coroutine any more, so it is stepped through by hand."""
    closing = lane.session.close()
    with contextlib.suppress(StopIteration):
        for _ in range(10):
            closing.send(None)
    closing.close()


def _is_loopback(host: str | None) -> bool:
    """Whether requests stay on this machine, where a proxy of the environment must not be asked."""
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def _parsed(content: bytes) -> dict[str, Any] | None:
    try:
        value = from_json(content)  # a reply with log probabilities has some 50 kB; the standard library takes half as long again
    except ValueError:
        try:
            value = json.loads(content)  # takes half of a surrogate pair, which some endpoints write
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def _fault(answer: dict[str, Any] | None) -> tuple[str, str]:
    """Code and words of an error body, in the dialects seen: ``error`` an object or a text, ``message``, ``detail``."""
    if answer is None:
        return "", ""
    fault = answer.get("error") or answer.get("detail") or answer.get("message") or ""
    if not isinstance(fault, dict):
        return "", fault if isinstance(fault, str) else json.dumps(fault)
    words = [str(fault[name]) for name in ("message", "param") if fault.get(name)]
    codes = [str(fault[name]) for name in ("code", "type") if fault.get(name)]
    code = next((code for code in codes if code in TOO_LONG_CODES), codes[0] if codes else "")
    return code, " ".join(words) or code


def _retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What ``Retry-After`` asks for, as seconds or as a date; None when it is missing or unreadable."""
    said = headers.get("Retry-After", "").strip()
    with contextlib.suppress(ValueError):
        return max(0.0, float(said))
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    return None
