"""A scripted OpenAI-compatible endpoint with a hosted model's delays, on the loopback address, in a process of its own.

450 ms to the first token, 80 tokens a second, 250 ms an embedding call of any size, no limit on concurrency. A token is four characters.
The time that answering takes here is part of the delay, not added to it. ``GET /stats`` tells calls, tokens, texts and seconds by kind,
``GET /prompts`` what was asked for verdicts. ``--answers`` names whose answers it gives: those of ``benchmarks.workload``, or of
``benchmarks.stream``, attentive or wordy. ``--swift``: no delays.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from aiohttp import web

from benchmarks import stream, workload
from benchmarks.measuring import ROOT
from memalign.embedders.scripted import HashEmbedder

FIRST_TOKEN_SECONDS = 0.45
TOKENS_A_SECOND = 80.0
EMBEDDING_SECONDS = 0.25
DIMENSION = 1536
MOST_TEXTS = 2048
MOST_PROMPTS = 200
_TOKEN = 4


Answer = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any] | None], tuple[str, str]]
"""From messages and a schema to the kind and the text of a reply."""
ANSWERS: dict[str, Answer] = {
    "workload": workload.answer,
    "attentive": partial(stream.answer, attentive=True),
    "wordy": partial(stream.answer, attentive=False),
}


class Endpoint:
    """Answers, delays and counts."""

    def __init__(self, answer: Answer, *, swift: bool, delay_seconds: float | None = None) -> None:
        """``delay_seconds``: what every completion takes, whatever its length."""
        self.answer, self.swift, self.delay_seconds = answer, swift, delay_seconds
        self.counted: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.in_flight = self.most_in_flight = 0
        self.judged: list[dict[str, Any]] = []

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/embeddings", self.embeddings)
        app.router.add_get("/stats", self.stats)
        app.router.add_post("/reset", self.reset)
        app.router.add_get("/prompts", self.prompts)
        return app

    async def chat(self, request: web.Request) -> web.Response:
        """A completion in OpenAI's form: JSON of the schema, arguments of the forced tool, or text."""
        started, body = time.perf_counter(), await request.json()
        schema, tool = _schema(body)
        kind, text = self.answer(body["messages"], schema)
        prompt_tokens = sum(len(str(message["content"])) for message in body["messages"]) // _TOKEN
        tokens = len(text) // _TOKEN
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if tool is not None:
            call = {"id": "call-1", "type": "function", "function": {"name": tool, "arguments": text}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        content = json.dumps(
            {
                "id": "chat-1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "message": message,
                        "finish_reason": "stop" if tool is None else "tool_calls",
                        "logprobs": _logprobs(text, body.get("top_logprobs") or 0) if body.get("logprobs") else None,
                    }
                ],
                "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens},
            }
        ).encode()
        await self._wait(started, FIRST_TOKEN_SECONDS + tokens / TOKENS_A_SECOND if self.delay_seconds is None else self.delay_seconds)
        self._count(kind, started, prompt_tokens=prompt_tokens, completion_tokens=tokens)
        if kind == "judge":
            self.judged = [*self.judged[-MOST_PROMPTS + 1 :], {"request": body, "reply": text}]
        return web.Response(body=content, content_type="application/json")

    async def embeddings(self, request: web.Request) -> web.Response:
        """Unit vectors of the dimension that is asked for, as numbers or base64."""
        started, body = time.perf_counter(), await request.json()
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        if len(texts) > MOST_TEXTS:
            return web.json_response({"error": {"message": f"at most {MOST_TEXTS} texts in a call", "type": "invalid_request_error"}}, status=400)
        vectors = await HashEmbedder(body.get("dimensions") or DIMENSION).embed(texts)
        packed = body.get("encoding_format") == "base64"
        rows = [base64.b64encode(vector.astype("<f4").tobytes()).decode() if packed else vector.tolist() for vector in vectors]
        tokens = sum(map(len, texts)) // _TOKEN
        data = [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        content = json.dumps({"object": "list", "model": body["model"], "data": data, "usage": usage}).encode()
        await self._wait(started, EMBEDDING_SECONDS)
        self._count("embed", started, texts=len(texts), prompt_tokens=tokens)
        return web.Response(body=content, content_type="application/json")

    async def stats(self, _request: web.Request) -> web.Response:
        """What was counted since the last reset."""
        return web.json_response({"kinds": self.counted, "most_in_flight": self.most_in_flight})

    async def prompts(self, _request: web.Request) -> web.Response:
        """The requests for verdicts since the last reset, the newest of many, as they came, and what was answered."""
        return web.json_response(self.judged)

    async def reset(self, _request: web.Request) -> web.Response:
        """Count from nothing."""
        self.counted.clear()
        self.judged.clear()
        self.most_in_flight = 0
        return web.json_response({})

    async def _wait(self, started: float, seconds: float) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0.0 if self.swift else max(0.0, seconds - (time.perf_counter() - started)))
        finally:
            self.in_flight -= 1

    def _count(self, kind: str, started: float, **amounts: float) -> None:
        counted = self.counted[kind]
        for name, amount in {"calls": 1, "seconds": time.perf_counter() - started, **amounts}.items():
            counted[name] += amount


def _schema(body: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """The JSON schema of the reply, and the name of the forced tool if it is asked for by a tool call."""
    if (form := body.get("response_format")) and form.get("type") == "json_schema":
        return form["json_schema"]["schema"], None
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        function = next(tool["function"] for tool in body["tools"] if tool["function"]["name"] == choice["function"]["name"])
        return function["parameters"], function["name"]
    return None, None


def _logprobs(text: str, alternatives: int) -> dict[str, Any]:
    tokens = [text[start : start + _TOKEN] for start in range(0, len(text), _TOKEN)]
    top = [{"token": f" t{n}", "logprob": -9.0 - n, "bytes": [32, 116]} for n in range(1, alternatives)]
    return {
        "content": [{"token": t, "logprob": -0.01, "bytes": [1] * len(t), "top_logprobs": [{"token": t, "logprob": -0.01}, *top]} for t in tokens]
    }


@contextmanager
def serving(*options: str, module: str = "benchmarks.endpoint") -> Iterator[str]:
    """An endpoint in a process of its own; gives its address before ``/v1``."""
    process = subprocess.Popen([sys.executable, "-m", module, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.terminate()
        process.wait(10)


def stats(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/stats", timeout=10) as response:
        found: dict[str, Any] = json.load(response)
    return found


def reset(address: str) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{address}/reset", method="POST"), timeout=10).close()


async def serve(app: web.Application, port: int) -> None:
    """Serve on the loopback address until the process ends; the address is printed first."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    print(json.dumps({"address": f"http://127.0.0.1:{runner.addresses[0][1]}"}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--answers", choices=ANSWERS, default="workload")
    parser.add_argument("--swift", action="store_true", help="without a hosted model's delays")
    parser.add_argument("--delay", type=float, help="seconds that every completion takes")
    options = parser.parse_args()
    asyncio.run(serve(Endpoint(ANSWERS[options.answers], swift=options.swift, delay_seconds=options.delay).app(), options.port))
