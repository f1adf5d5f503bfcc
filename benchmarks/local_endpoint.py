"""The in-process model and embedder behind an OpenAI-compatible endpoint on the loopback address, so that MLflow can ask the very same model.

A reply may have 800 tokens where the caller names no limit. ``GET /stats`` and ``POST /reset`` as in ``benchmarks.endpoint``.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict

from aiohttp import web

from benchmarks.endpoint import serve
from memalign.embedders import open_embedder
from memalign.errors import MemalignError
from memalign.models import ChatRequest, Message
from memalign.models.local import local_chat_model

MOST_TOKENS = 800


class LocalEndpoint:
    """Answers by the local model, and counts."""

    def __init__(self, weights: str) -> None:
        self.model = local_chat_model(weights)
        self.embedder = open_embedder("local/minilm")
        self.counted: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/embeddings", self.embeddings)
        app.router.add_get("/stats", self.stats)
        app.router.add_post("/reset", self.reset)
        return app

    async def chat(self, request: web.Request) -> web.Response:
        """A completion, by the schema if the caller gives one."""
        body = await request.json()
        form = body.get("response_format") or {}
        asked = ChatRequest(
            messages=tuple(Message(message["role"], str(message["content"])) for message in body["messages"]),
            schema=form["json_schema"]["schema"] if form.get("type") == "json_schema" else None,
            max_tokens=body.get("max_tokens") or body.get("max_completion_tokens") or MOST_TOKENS,
            temperature=body.get("temperature") or 0.0,
        )
        kind = "distil" if any("distill a set of guidelines" in message.content for message in asked.messages) else "judge"
        started = time.perf_counter()
        try:
            reply = await self.model.complete(asked)
        except MemalignError as error:
            self._count(kind, failed=1)
            return web.json_response({"error": {"message": str(error), "type": "invalid_request_error"}}, status=400)
        usage = {"prompt_tokens": reply.usage.prompt_tokens, "completion_tokens": reply.usage.completion_tokens}
        self._count(kind, calls=1, seconds=time.perf_counter() - started, cut=reply.finish_reason == "length", **usage)
        message = {"role": "assistant", "content": reply.text}
        choices = [{"index": 0, "message": message, "finish_reason": reply.finish_reason}]
        usage["total_tokens"] = sum(usage.values())
        return web.json_response(
            {"id": "chat-1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": choices, "usage": usage}
        )

    async def embeddings(self, request: web.Request) -> web.Response:
        """Unit vectors, of the embedder's own dimension."""
        body = await request.json()
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors = await self.embedder.embed(texts)
        self._count("embed", calls=1, texts=len(texts))
        data = [{"object": "embedding", "index": place, "embedding": vector.tolist()} for place, vector in enumerate(vectors)]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return web.json_response({"object": "list", "model": body["model"], "data": data, "usage": usage})

    async def stats(self, _request: web.Request) -> web.Response:
        """What was counted since the last reset."""
        return web.json_response({"kinds": self.counted})

    async def reset(self, _request: web.Request) -> web.Response:
        """Count from nothing."""
        self.counted.clear()
        return web.json_response({})

    def _count(self, kind: str, **amounts: float) -> None:
        for name, amount in amounts.items():
            self.counted[kind][name] += amount


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--weights", default="qwen2.5-coder-1.5b")
    options = parser.parse_args()
    asyncio.run(serve(LocalEndpoint(options.weights).app(), options.port))
