"""The benchmarks of quality run through, on a small scale and with scripted models."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from benchmarks import ablation, coaching, local_endpoint, stream

from conftest import MakeJudge
from memalign.embedders.scripted import HashEmbedder
from memalign.errors import ModelRefused
from memalign.models import ChatReply, ChatRequest, TokenLogprobs
from memalign.models.scripted import ScriptedChatModel


def told(request: ChatRequest) -> Any:
    """A model in process that writes one rule for every reason, and believes every second item."""
    if request.purpose == "distil":
        return f"Never do thing {sum(map(ord, request.messages[-1].content)) % 5}."
    labels = request.choices or ()
    place = sum(map(ord, request.messages[-1].content)) % len(labels)
    top = tuple((label, math.log(0.6 if label == labels[place] else 0.4 / (len(labels) - 1))) for label in labels)
    return ChatReply(text=labels[place], logprobs=(TokenLogprobs(labels[place], dict(top)[labels[place]], top),))


@pytest.mark.parametrize("name", ["financebench", "shepherd"])
def test_the_ablation_goes_on_where_it_stopped_and_reports_every_condition(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = (True, False) if name == "financebench" else (1, 2, 3, 4)
    for half in ("train", "test"):
        rows = [
            {"id": f"{half}{n}", "inputs": {"q": f"question {n} of {half}"}, "outputs": f"answer {n} " * (1 + n % 4), "reference": "known"}
            | {"label": labels[n % len(labels)], "rationale": f"reason {n % 3}: a thing is missing" if half == "train" else None}
            for n in range(16)
        ]
        (tmp_path / f"{name}.{half}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    monkeypatch.setattr(ablation, "SHARED", tmp_path)
    monkeypatch.setattr(ablation, "TRAIN", 12)
    monkeypatch.setattr(ablation, "TEST", 12)
    monkeypatch.setattr(ablation, "_HALVES", (("train", 12), ("test", 12)))
    model = ScriptedChatModel(told, name="local/scripted")
    late = ablation.Run(name, tmp_path, 0.0, model)
    with pytest.raises(ablation.TimeUp):
        late.work(ablation.CONDITIONS)
    run = ablation.Run(name, tmp_path, math.inf, model)
    run.judge.embedder = HashEmbedder()
    run.work(ablation.CONDITIONS)
    run.judge.close()
    asked = len(model.requests)
    run.work(ablation.CONDITIONS)
    assert len(model.requests) == asked, "nothing is done twice"
    run.judge.close()
    found = ablation.report(tmp_path, [name])["sets"][name]
    assert list(found["conditions"]) == [condition.name for condition in ablation.CONDITIONS]
    for kept in found["conditions"].values():
        value, low, high = kept["balanced accuracy"]
        assert low <= value <= high
        assert (kept["n"], kept["failures"]) == (12, 0)
    assert [step["step"] for step in found["steps"]] == ["align", "calibrate"]
    assert "reason" not in (tmp_path / f"{name}.jsonl").read_text()


def test_the_coachs_benchmark_counts_what_was_said(tmp_path: Path) -> None:
    rows = coaching.rows()
    assert [sum(row["problem"] == problem for row in rows) for problem in coaching.PROBLEMS] == [17, 11, 10, 10]
    journal = tmp_path / "said.jsonl"
    lines = [{"id": "c1", "problem": "none", "with": "", "plain": "none", "said": "none", "against": "", "question": "?", "seconds": 1.0}]
    lines += [{"id": "c2", "problem": "contradicts", "with": "g1", "plain": "none", "said": "vague", "against": "", "seconds": 2.0}]
    journal.write_text("\n".join(map(json.dumps, lines)))
    found = coaching.report(journal, "scripted")
    assert found["coach"]["not usable"]["precision"].startswith("1.00")
    assert found["coach"]["contradicts"]["recall"].startswith("0.00")
    assert found["confusion"] == {"contradicts as vague": 1, "none as none": 1}


def test_a_longer_stream_begins_with_the_shorter_one() -> None:
    long, short = stream.stream(120), stream.stream(60)
    assert [record.id for record in long[:60]] == [record.id for record in short]
    assert len({record.id for record in long}) < 120, "some come once more"
    assert stream.demanded(0, 20) is not stream.demanded(0, 60)
    assert {record.value for record in stream.unseen(120, 30)} == {True, False}


def test_the_scripted_model_reads_the_prompts_of_mlflow() -> None:
    """In the form of MLflow 3.17: labels and reasons stand before the item."""
    good, bad = stream.stream(8)[1], stream.stream(8)[7]
    records = [
        f'{{\n  "id": {place},\n  "result": "{str(r.value).lower()}",\n  "rationale": "{r.rationale}",\n  "inputs": "{r.inputs}",\n'
        f'  "outputs": "{r.outputs}",\n}}'
        for place, r in enumerate((good, bad))
    ]
    prompt = "distill a set of guidelines\n  - {}\nHere are the user judgement examples:\n" + "\n".join(records)
    made = [json.loads(stream.answer([{"role": "user", "content": prompt}], None, attentive=a)[1])["guidelines"] for a in (True, False)]
    assert [stream.demand(one["guideline_text"]) for one in made[0]] == [(0, True), (1, True)]
    assert [one["source_trace_ids"] for one in made[0]] == [[0], [1]]
    known = prompt.replace("{}", made[0][0]["guideline_text"], 1)
    again = [json.loads(stream.answer([{"role": "user", "content": known}], None, attentive=a)[1])["guidelines"] for a in (True, False)]
    assert [len(one) for one in again] == [1, 2], "the attentive one does not say again what is listed"

    example = {"result": "false", "rationale": "x", "inputs": "{}", "outputs": good.outputs}
    judging = [{"role": "system", "content": f"Judge.\n  Example 1: {example}"}, {"role": "user", "content": good.outputs}]
    assert stream.answer(judging, None, attentive=True) == ("judge", "no"), "as the case says"
    judging[0]["content"] += f"\n  - {made[0][0]['guideline_text']}"
    assert stream.answer(judging, None, attentive=True) == ("judge", "yes"), "a guideline comes before cases"


def test_the_local_model_behind_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedChatModel([{"result": True, "rationale": "r"}, ModelRefused("no such schema")])
    monkeypatch.setattr(local_endpoint, "local_chat_model", lambda _: model)
    monkeypatch.setattr(local_endpoint, "open_embedder", lambda _: HashEmbedder(8))
    schema = {"type": "object", "properties": {"result": {"type": "boolean"}}}
    body = {"model": "m", "messages": [{"role": "user", "content": "judge it"}]}
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}

    async def talk() -> tuple[Any, ...]:
        async with TestClient(TestServer(local_endpoint.LocalEndpoint("w").app())) as client:
            first = await (await client.post("/v1/chat/completions", json=body | form)).json()
            second = await client.post("/v1/chat/completions", json=body)
            vectors = await (await client.post("/v1/embeddings", json={"model": "e", "input": ["one", "two"]})).json()
            return first, second.status, vectors, await (await client.get("/stats")).json()

    first, status, vectors, stats = asyncio.run(talk())
    assert json.loads(first["choices"][0]["message"]["content"])["result"] is True
    assert (model.requests[0].schema, model.requests[0].max_tokens) == (schema, local_endpoint.MOST_TOKENS)
    assert (status, [len(row["embedding"]) for row in vectors["data"]]) == (400, [8, 8])
    assert (stats["kinds"]["judge"]["calls"], stats["kinds"]["judge"]["failed"], stats["kinds"]["embed"]["texts"]) == (1, 1, 2)


@pytest.mark.parametrize("attentive", [True, False])
def test_memory_does_not_grow_with_repeats_and_follows_reversals(make_judge: MakeJudge, attentive: bool) -> None:
    """The growth benchmark in small: what is said again is no new guideline, and no two guidelines contradict each other."""

    def answer(request: ChatRequest) -> str:
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        return stream.answer(messages, request.schema, attentive=attentive)[1]

    judge = make_judge(ScriptedChatModel(answer), embedder=HashEmbedder(512))
    right = []
    for before, step in ((0, 30), (30, 60)):
        judge.align(stream.stream(step)[before:], verify="off")
        texts = [guideline.text for guideline in judge.memory.guidelines()]
        assert len(texts) == stream.distinct(texts)
        assert stream.contradicting(texts) == 0
        exam = stream.unseen(step, 30)
        right.append(judge.agreement(exam, judge.batch(exam, own=False)).accuracy)
    assert len(judge.memory.questions()) == 1, "the theme on which two experts always disagree"
    assert right[-1] is not None
    assert right[-1].value > 0.85
