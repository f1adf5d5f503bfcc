"""The doubles that ship in the package."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from memalign.embedders.scripted import HashEmbedder
from memalign.errors import ConfigurationError, ModelUnavailable
from memalign.models import ChatReply, ChatRequest, Message
from memalign.models.scripted import ScriptedChatModel, ScriptedReply

ASK = ChatRequest(messages=(Message("user", "Is it polite?"),), purpose="distil")


def complete(model: ScriptedChatModel) -> ChatReply:
    return asyncio.run(model.complete(ASK))


def test_replies_come_in_order_and_requests_are_kept() -> None:
    model = ScriptedChatModel(["yes", {"verdict": True}, ChatReply(text="cut", finish_reason="length"), ModelUnavailable("busy")])
    assert complete(model).text == "yes"
    assert json.loads(complete(model).text) == {"verdict": True}
    assert complete(model).finish_reason == "length"
    with pytest.raises(ModelUnavailable, match="busy"):
        complete(model)
    assert model.requests == [ASK] * 4
    assert model.name == "scripted/model"


def test_an_empty_script_says_what_was_asked() -> None:
    model = ScriptedChatModel(["only"])
    complete(model)
    with pytest.raises(ConfigurationError, match=r"no reply left for request 2 .purpose 'distil'.: 'Is it polite\?'"):
        complete(model)
    model.add("more")
    assert complete(model).text == "more"


def test_a_function_may_answer() -> None:
    def echo(request: ChatRequest) -> ScriptedReply:
        return {"heard": request.messages[-1].content}

    assert json.loads(complete(ScriptedChatModel(echo, name="scripted/echo")).text) == {"heard": "Is it polite?"}


def test_delays_overlap() -> None:
    model = ScriptedChatModel(lambda request: "ok", delay_seconds=0.2)

    async def burst() -> float:
        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.gather(*(model.complete(ASK) for _ in range(10)))
        return loop.time() - started

    assert 0.2 <= asyncio.run(burst()) < 1


def test_hashed_vectors_are_unit_deterministic_and_near_for_shared_words() -> None:
    embedder = HashEmbedder(dimension=32)
    texts = ["the refund is late", "The refund is very late!", "cats sleep", "", "..."]
    vectors = asyncio.run(embedder.embed(texts))
    assert vectors.shape == (5, 32)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert (vectors[3] == vectors[4]).all()
    assert (asyncio.run(HashEmbedder(32).embed(texts)) == vectors).all()
    assert embedder.texts == texts
    assert embedder.id == "scripted/hash-32"
    assert asyncio.run(embedder.embed([])).shape == (0, 32)
