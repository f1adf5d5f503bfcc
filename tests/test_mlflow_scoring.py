"""Scoring inside MLflow with an aligned judge: the same scenarios for memalign's optimizer and for MLflow's own (``defect``: theirs is wrong)."""

from __future__ import annotations

import copy
import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest

pytest.importorskip("mlflow", reason="the MLflow integration is tested where MLflow is installed: make integrations")

import mlflow
from mlflow.exceptions import MlflowException

from endpoint import completion
from mlflow_support import Made, Ours, Provider, Said, Theirs, has_their_newest, log, make

pytest_plugins = ["mlflow_support"]

Side = Ours | Theirs
SHOWN = "retrieved_example_trace_ids"


def prompt(body: dict[str, Any]) -> str:
    return "\n".join(str(message.get("content") or "") for message in body["messages"])


def about(trace: Made, topic: str, *said: Said, outputs: str = "short") -> Any:
    """A trace on a topic: words in common make texts similar."""
    return trace(*said, inputs={"question": topic}, outputs=outputs)


# Which cases a judgement is shown


def test_the_most_similar_case_stands_first(side: Side, trace: Made) -> None:
    near = about(trace, "where is the parcel to Graz", Said(False, "tone"))
    nearer = about(trace, "where is the parcel to Lyon now", Said(False, "tone"))
    judge = make().align([near, nearer], side.optimizer())
    feedback = judge(inputs={"question": "where is the parcel to Lyon today"}, outputs="short")
    assert feedback.metadata[SHOWN] == [nearer.info.trace_id, near.info.trace_id]


def test_no_more_cases_than_asked_for(side: Side, trace: Made) -> None:
    found = [about(trace, f"where is the parcel number {n}", Said(False, "tone")) for n in range(4)]
    judge = make().align(found, side.optimizer(retrieval_k=2))
    assert len(judge(inputs={"question": "where is the parcel number 9"}, outputs="short").metadata[SHOWN]) == 2


def test_unrelated_cases_are_shown_defect(side: Side, trace: Made) -> None:
    judge = make().align(
        [about(trace, "zebra", Said(False, "tone"), outputs="giraffes and lions live where grass grows high around them")], side.optimizer()
    )
    metadata = judge(inputs={"question": "refund"}, outputs="your broken kettle will be replaced once we have seen its picture").metadata
    assert (SHOWN in metadata) is (side.name == "mlflow")


def test_one_trace_of_two_annotators_is_shown_twice_defect(side: Side, trace: Made) -> None:
    one = about(trace, "where is the parcel", Said(False, "tone"), Said(False, "length", "bob"))
    judge = make().align([one], side.optimizer())
    shown = judge(inputs={"question": "where is the parcel"}, outputs="short").metadata[SHOWN]
    assert shown == [one.info.trace_id] * (2 if side.name == "mlflow" else 1)


def test_cases_are_found_by_the_first_field_only_defect(side: Side, trace: Made) -> None:
    """Two traces of one question; the reply tells which of them resembles the row."""
    rude = trace(Said(False, "tone"), inputs={"question": "hello"}, outputs="read the manual yourself before you write to us again thank you")
    kind = trace(Said(True, "warmth"), inputs={"question": "hello"}, outputs="we are very sorry and have sent the new kettle to you this morning")
    judge = make().align([rude, kind], side.optimizer(retrieval_k=1))
    row = "we are very sorry and have sent the new lamp to you this evening"
    shown = [judge(inputs={"question": "hello"}, outputs=row).metadata[SHOWN][0]]
    row = "read the leaflet yourself before you call us again thank you so much"
    shown.append(judge(inputs={"question": "hello"}, outputs=row).metadata[SHOWN][0])
    right = [kind.info.trace_id, rude.info.trace_id]
    assert (shown == right) is (side.name == "ours")


def test_examples_stand_before_the_guidelines_defect(side: Side, trace: Made, provider: Provider) -> None:
    """What changes from row to row must stand last, or no provider serves the rules from its prefix cache."""
    found = [about(trace, f"where is the {thing}", Said(False, "tone")) for thing in ("kettle", "lamp")]
    judge = make().align(found, side.optimizer(retrieval_k=1))
    for thing in ("kettle", "lamp"):
        judge(inputs={"question": f"where is the {thing} now"}, outputs="short")
    one, two = (prompt(body) for body in provider.asked("judge"))
    common = next(place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    assert ("rule about tone" in one[:common]) is (side.name == "ours")


def test_a_query_waits_in_the_retriever_defect(side: Side, trace: Made, provider: Provider) -> None:
    """Theirs waits 100 ms for other queries to search together with, every time; ours asks at once: the best of five calls takes less than that."""
    judge = make().align([about(trace, "where is the parcel", Said(False, "tone"))], side.optimizer())
    judge(inputs={"question": "where is the lamp"}, outputs="short")
    if side.name == "mlflow":
        assert judge._retriever.search_fn.max_wait_time >= 0.1
        return
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        judge(inputs={"question": "where is the lamp"}, outputs="short")
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.1


def test_the_row_itself_is_shown_with_its_experts_verdict(side: Side, trace: Made, provider: Provider) -> None:
    one = about(trace, "where is the parcel", Said(False, "tone"))
    judge = make().align([one], side.optimizer())
    judge(trace=one)
    assert "tone" in prompt(provider.asked("judge")[0])


# What comes back


def test_metadata_hold_the_criterion_and_no_example(side: Side, trace: Made) -> None:
    base = make()
    judge = base.align([about(trace, "where is the parcel", Said(False, "a secret reason"))], side.optimizer())
    feedback = judge(inputs={"question": "where is the parcel"}, outputs="short")
    assert feedback.metadata["guideline"] == base.instructions
    assert "secret" not in json.dumps(feedback.metadata)
    assert feedback.name == "polite"
    assert feedback.source.source_type == "LLM_JUDGE"
    assert feedback.source.source_id == base.model


@pytest.mark.skipif(not has_their_newest(), reason="older MLflow note the cost alone, and that of known models")
def test_tokens_and_cost_of_the_call_are_noted(side: Side, trace: Made) -> None:
    judge = make().align([trace(Said(False, "tone"))], side.optimizer())
    noted = judge(inputs={"question": "?"}, outputs="short").metadata
    assert noted["mlflow.assessment.judgeInputTokens"] == 11


@pytest.mark.parametrize(
    ("value_type", "said", "expected"),
    [
        (bool, [True, False], True),
        (bool, ["yes", "no"], True),
        (bool, [1, 0.0], True),
        pytest.param(bool | None, ["yes", False, 1], True, marks=pytest.mark.skipif(not has_their_newest(), reason="newer than MLflow 3.9")),
        (int, [3, 4], 3),
        (float, [0.25, 1.0], 0.5),
        (str, ["fine", "poor"], "fine"),
        (Literal["good", "poor"], ["good", "poor"], "good"),
        (Literal["yes", "no"], [True, "no"], "yes"),
        (Literal[1, 2, 3], [1, 3], 1),
        pytest.param(float | None, [0.5], 0.5, marks=pytest.mark.skipif(not has_their_newest(), reason="newer than MLflow 3.9")),
        (list[str], [["a", "b"]], ["a"]),
        (dict[str, int], [{"tone": 1}], {"tone": 2}),
    ],
)
def test_verdicts_keep_their_type(side: Side, trace: Made, provider: Provider, value_type: Any, said: list[Any], expected: Any) -> None:
    judge = make(value_type=value_type).align([about(trace, "parcel", Said(value, "tone")) for value in said], side.optimizer())
    value = judge(inputs={"question": "parcel"}, outputs="short").value
    assert value == expected
    assert type(value) is type(expected)


def test_expectations_are_judged_and_shown(side: Side, trace: Made, provider: Provider) -> None:
    text = "Does {{ outputs }} hold what {{ expectations }} ask for?"
    one = trace(Said(False, "tone"), expected="Graz", outputs="it went to Graz and will be there soon we think")
    judge = make(text=text).align([one], side.optimizer())
    judge(outputs="it went to Lyon and will be there soon we think", expectations={"fact": "Lyon"})
    sent = prompt(provider.asked("judge")[0])
    assert "Lyon" in sent
    assert "Graz" in sent


def test_what_is_missing_is_named(side: Side, trace: Made) -> None:
    judge = make().align([trace(Said(False, "tone"))], side.optimizer())
    with pytest.raises(MlflowException, match="Must specify 'outputs'"):
        judge(inputs={"question": "?"})
    with pytest.raises(MlflowException, match="must be a dictionary"):
        judge(inputs={"question": "?"}, outputs="short", expectations="Graz")


def test_a_model_that_refuses_is_an_error_not_a_verdict(side: Side, trace: Made, provider: Provider) -> None:
    judge = make().align([trace(Said(False, "tone"))], side.optimizer())
    provider.verdict = lambda body: completion("I would rather not.")
    with pytest.raises(MlflowException, match=r"Failed to parse|no readable verdict"):
        judge(inputs={"question": "?"}, outputs="short")


def test_an_unreadable_reply_is_asked_for_again(side: Side, trace: Made, provider: Provider) -> None:
    judge = make().align([trace(Said(False, "tone"))], side.optimizer())
    replies = iter([completion("I would rather not."), True])
    provider.verdict = lambda body: next(replies)
    if side.name == "mlflow":
        with pytest.raises(MlflowException):
            judge(inputs={"question": "?"}, outputs="short")
        return
    assert judge(inputs={"question": "?"}, outputs="short").value is True


@pytest.mark.parametrize("nullable", [False, pytest.param(True, marks=pytest.mark.skipif(not has_their_newest(), reason="newer than MLflow 3.9"))])
def test_words_and_numbers_for_true_and_false_are_read(trace: Made, provider: Provider, nullable: bool) -> None:
    base = make(value_type=bool | None if nullable else bool)
    said = ("yes", 1, 1.0, True, "No", 0, 0.0, False)
    judge = base.align([trace(Said(value, "tone")) for value in said], Ours().optimizer())
    assert [episode.feedback.value for episode in judge.memory.episodes()] == [True] * 4 + [False] * 4
    with pytest.raises(MlflowException, match="2 is not on the scale"):
        base.align([trace(Said(2, "tone"))], Ours().optimizer())


# Kinds of judges


def test_a_judge_of_traces_keeps_its_tools(side: Side, trace: Made, provider: Provider) -> None:
    one = about(trace, "where is the parcel", Said(False, "tone"))
    judge = make(text="Did the agent in {{ trace }} stay polite?").align([one], side.optimizer())

    def verdict(body: dict[str, Any]) -> Any:
        if any(message["role"] == "tool" for message in body["messages"]):
            return False
        call = {"id": "t1", "type": "function", "function": {"name": "get_root_span", "arguments": "{}"}}
        return completion(None, finish_reason="tool_calls", tool_calls=[call])

    provider.verdict = verdict
    feedback = judge(trace=about(trace, "where is the other parcel"))
    first, second = provider.asked("judge")
    assert feedback.value is False
    assert "get_root_span" in [tool["function"]["name"] for tool in first["tools"]]
    assert "where is the other parcel" in prompt(second)
    assert feedback.metadata[SHOWN] == [one.info.trace_id]


def test_a_trace_without_inputs_at_its_root_is_looked_into_with_tools(side: Side, trace: Made, provider: Provider) -> None:
    judge = make().align([trace(Said(False, "tone"))], side.optimizer())
    empty = trace(outputs="short")
    form = empty.to_dict()
    del form["data"]["spans"][0]["attributes"]["mlflow.spanInputs"]
    judge(trace=type(empty).from_dict(form))
    assert provider.asked("judge")[0]["tools"]


def test_conversations_are_aligned_defect(side: Side, trace: Made, provider: Provider) -> None:
    base = make(text="Was the assistant polite all through {{ conversation }}?")
    turns = [
        trace(Said(False, "tone"), inputs={"messages": [{"role": "user", "content": "where is it"}]}, outputs="look yourself", session="s1"),
        trace(inputs={"messages": [{"role": "user", "content": "I want help"}]}, outputs="no", session="s1"),
    ]
    with pytest.raises(NotImplementedError):  # MLflow's judges refuse before any optimizer is asked
        base.align(turns, side.optimizer())
    if side.name == "mlflow":
        with pytest.raises(MlflowException):
            side.optimizer().align(base, turns)
        return
    judge = side.optimizer().align(base, turns)
    assert judge.is_session_level_scorer
    assert [episode.feedback.inputs[2]["content"] for episode in judge.memory.episodes()] == ["I want help"]
    other = [
        trace(inputs={"messages": [{"role": "user", "content": "where is it now"}]}, outputs="look yourself please", session="s2"),
        trace(inputs={"messages": [{"role": "user", "content": "I want more help"}]}, outputs="well no", session="s2"),
    ]
    feedback = judge(session=other)
    assert feedback.metadata[SHOWN] == [turns[0].info.trace_id]
    assert "I want more help" in prompt(provider.asked("judge")[0])
    assert judge.align(turns) is judge
    assert judge.unalign(turns).memory.episodes() == []


# Copies, threads and evaluation


def test_rows_scored_at_once_do_not_mix(side: Side, trace: Made, provider: Provider) -> None:
    found = [about(trace, f"where is the {thing}", Said(False, f"{thing} rule")) for thing in ("kettle", "lamp", "sofa", "tent")]
    judge = make().align(found, side.optimizer(retrieval_k=1))
    start = threading.Barrier(4)
    provider.delay_seconds = 0.05

    def score(number: int) -> bool:
        if number < 4:
            start.wait(20)
        thing = ("kettle", "lamp", "sofa", "tent")[number % 4]
        feedback = judge(inputs={"question": f"where is the {thing} today"}, outputs="short")
        return bool(feedback.metadata[SHOWN] == [found[number % 4].info.trace_id])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(score, range(16)))
    for body in provider.asked("judge"):
        row = str(body["messages"][-1]["content"])
        thing = next(thing for thing in ("kettle", "lamp", "sofa", "tent") if f"the {thing} today" in row)
        before = "".join(str(message.get("content") or "") for message in body["messages"][:-1])
        assert {other for other in ("kettle", "lamp", "sofa", "tent") if f"where is the {other}" in before} == {thing}


def test_deep_copies_defect(side: Side, trace: Made, provider: Provider) -> None:
    judge = make().align([about(trace, "where is the parcel", Said(False, "tone"))], side.optimizer())
    if side.name == "mlflow":
        with pytest.raises(TypeError):
            copy.deepcopy(judge)
        return
    provider.embedded.clear()
    for twin in (copy.deepcopy(judge), judge.model_copy(deep=True), pickle.loads(pickle.dumps(judge))):
        assert twin(inputs={"question": "where is the parcel"}, outputs="short").metadata[SHOWN]
        assert twin.place == judge.place
    assert len(provider.embedded) <= 1


def test_mlflow_evaluates_with_it(side: Side, trace: Made, provider: Provider, experiment: str) -> None:
    judge = make().align([about(trace, "where is the parcel", Said(False, "tone"))], side.optimizer())
    provider.verdict = lambda body: "late" not in str(body["messages"][-1]["content"])
    rows = [{"inputs": {"question": f"where is the parcel {n}"}, "outputs": "late" if n % 2 else "here"} for n in range(6)]
    result = mlflow.genai.evaluate(data=rows, scorers=[judge])
    table = result.result_df
    assert {(row["request"]["question"][-1], row["polite/value"]) for _, row in table.iterrows()} == {(str(n), n % 2 == 0) for n in range(6)}


def test_conversations_are_evaluated(provider: Provider, experiment: str) -> None:
    judge = (
        Ours()
        .optimizer()
        .align(
            make(text="Was the assistant polite all through {{ conversation }}?"),
            [log(Said(False, "tone"), inputs={"question": "where is it"}, outputs="look yourself", session="s1")],
        )
    )
    provider.verdict = lambda body: False
    turns = [log(inputs={"question": text}, outputs="well no", session="s2") for text in ("where is it now", "help")]
    result = mlflow.genai.evaluate(data=turns, scorers=[judge])
    assert False in list(result.result_df["polite/value"])


def test_nothing_measures_agreement_defect(side: Side, trace: Made, provider: Provider) -> None:
    judge = make().align([about(trace, "kettle", Said(True, "warmth"))], side.optimizer())
    if side.name == "mlflow":
        assert not [name for name in dir(judge) if "agree" in name]
        return
    unseen = [about(trace, f"where is it {n}", Said(n % 2 == 0)) for n in range(4)]
    provider.verdict = lambda body: True
    found = judge.agreement([*unseen, about(trace, "nobody said")])
    assert (found.n, found.accuracy.value) == (4, 0.5)


def test_a_case_is_hidden_while_its_own_agreement_is_measured(trace: Made, provider: Provider) -> None:
    one = about(trace, "where is the parcel", Said(True, "warmth"))
    judge = make().align([one], Ours().optimizer())
    judge.agreement([one])
    assert len(provider.asked("judge")[0]["messages"]) == 2


# Bad input


def test_an_assessment_of_the_wrong_type_is_named_and_nothing_is_learned(trace: Made, provider: Provider) -> None:
    good, bad = trace(Said(True, "warmth")), trace(Said("rather", "tone"))
    with pytest.raises(MlflowException, match=rf"{bad.info.trace_id}.*'rather'.*accepted: true, yes.*mlflow.update_assessment"):
        make().align([good, bad], Ours().optimizer())
    assert provider.requests == []


@pytest.mark.skipif(not has_their_newest(), reason="newer than MLflow 3.9")
def test_a_judge_of_the_decision_api_is_refused(trace: Made, provider: Provider) -> None:
    with pytest.raises(MlflowException, match=r"Decision API.*no turns.*model_api='chat_completions'"):
        make(model_api="decisions").align([trace(Said(True, "warmth"))], Ours().optimizer())
    assert provider.requests == []


def test_what_the_judge_asks_its_model_with_is_kept(trace: Made, provider: Provider) -> None:
    base = make(inference_params={"temperature": 0.25, "max_tokens": 77})
    judge = base.align([trace(Said(True, "warmth"))], Ours().optimizer())
    judge(inputs={"question": "?"}, outputs="short")
    (body,) = provider.asked("judge")
    assert (body["temperature"], body["max_tokens"]) == (0.25, 77)


@pytest.mark.skipif(not has_their_newest(), reason="newer than MLflow 3.9")
def test_address_and_headers_of_the_judge_are_kept(trace: Made, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make(base_url=f"{provider.url}/chat/completions", extra_headers={"X-Team": "support"})
    judge = base.align([trace(Said(True, "warmth"))], Ours().optimizer())
    provider.requests.clear()
    judge(inputs={"question": "?"}, outputs="short")
    assert [one.headers["X-Team"] for one in provider.requests if one.path != "embeddings"] == ["support"]


def test_a_missing_key_is_said_with_the_first_verdict(trace: Made, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = make().align([trace(Said(True, "warmth"))], Ours().optimizer())
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(MlflowException, match="OPENAI_API_KEY"):
        judge(inputs={"question": "?"}, outputs="short")


def test_embeddings_of_other_providers_come_through_litellm(trace: Made, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTED_VLLM_API_BASE", provider.url)
    monkeypatch.setenv("HOSTED_VLLM_API_KEY", "dummy")
    optimizer = Ours().optimizer(embedding_model="hosted_vllm:/words")
    one = about(trace, "where is the parcel", Said(True, "warmth"))
    judge = make().align([one], optimizer)
    assert judge(inputs={"question": "where is the parcel"}, outputs="short").metadata[SHOWN] == [one.info.trace_id]
    assert {body["model"] for body in provider.asked("embed")} == {"words"}
