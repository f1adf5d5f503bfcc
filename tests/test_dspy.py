"""Inside DSPy: an aligned judge as a metric and as a module, and feedback from examples."""

from __future__ import annotations

import copy
import importlib
import math
import os
import pickle
import runpy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else LiteLLM, which DSPy imports, fetches its price list
pytest.importorskip("dspy", reason="the DSPy integration is tested where DSPy is installed: make integrations")

import dspy
from pydantic import BaseModel

from conftest import MakeJudge, expert, says
from memalign import BadRecord, ConfigurationError, Feedback, Judge, ModelUnavailable, PermanentError, Scale
from memalign.integrations.dspy import as_metric, as_module, feedback_from
from memalign.models import ChatRequest
from memalign.models.scripted import ScriptedChatModel

EXAMPLES = Path(__file__).parent.parent / "examples"
QUESTION = dspy.Example(question="Where is my parcel?", gold="It comes on Monday.").with_inputs("question")
WAIT, SORRY = dspy.Prediction(reply="Wait."), dspy.Prediction(reply="Sorry, it comes on Monday.")


class Polite:
    """A scripted model for which a reply is polite when it says sorry."""

    def __init__(self) -> None:
        self.model = ScriptedChatModel(self._answer)

    def _answer(self, request: ChatRequest) -> Mapping[str, Any]:
        if request.purpose != "judge":
            return expert(request)
        return says("yes", "It says sorry.") if "Sorry" in request.messages[-1].content else says("no", "No apology.")

    @property
    def judged(self) -> list[ChatRequest]:
        return [request for request in self.model.requests if request.purpose == "judge"]


@pytest.fixture
def polite() -> Polite:
    return Polite()


def shown(polite: Polite) -> str:
    return polite.judged[-1].messages[-1].content


class ScriptedLM(dspy.BaseLM):  # type: ignore[misc]
    """A program's model that always says the same."""

    def __init__(self, reply: str) -> None:
        super().__init__("scripted", cache=False)
        self.reply = reply

    def forward(self, prompt: Any = None, messages: Any = None, **_: Any) -> Any:
        message = SimpleNamespace(content=f"[[ ## reply ## ]]\n{self.reply}\n\n[[ ## completed ## ]]", tool_calls=None)
        return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason="stop")], usage={}, model="scripted")


# The score


def test_a_boolean_verdict_is_one_or_nothing_with_its_reason(make_judge: MakeJudge, polite: Polite) -> None:
    metric = as_metric(make_judge(polite.model))
    good, bad = metric(QUESTION, SORRY), metric(QUESTION, WAIT)
    assert (good.score, bad.score) == (1.0, 0.0)
    assert (good.verdict, good.rationale, bad.verdict, bad.rationale) == (True, "It says sorry.", False, "No apology.")
    assert "Verdict: no. Score: 0.00" in bad.feedback
    assert "Reason: No apology." in bad.feedback


@pytest.mark.parametrize(("verdict", "score"), [(1, 0.0), (2, 0.25), (5, 1.0)])
def test_a_score_runs_from_nothing_to_one(make_judge: MakeJudge, verdict: int, score: float) -> None:
    judge = make_judge(ScriptedChatModel(lambda _: says(verdict)), scale=Scale.score(1, 5))
    assert as_metric(judge)(QUESTION, WAIT).score == score


def test_categories_have_the_scores_they_are_given(make_judge: MakeJudge) -> None:
    scale = Scale.categories("good", "fair", "poor")
    judge = make_judge(ScriptedChatModel(lambda _: says("fair")), scale=scale)
    with pytest.raises(ConfigurationError, match=r"scores=\{'good': \.\.\., 'fair'"):
        as_metric(judge)
    metric = as_metric(judge, scores={"Good": 1, "fair": 0.4, "poor": 0})
    assert metric(QUESTION, WAIT).score == 0.4
    assert metric.scores == {"good": 1.0, "fair": 0.4, "poor": 0.0}


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({"good": 1, "fair": 0.5}, "none for poor"),
        ({"good": 1, "fair": 0.5, "poor": 0, "bad": 0}, "'bad' is not on the scale"),
        ({"good": 5, "fair": 0.5, "poor": 0}, "5 for 'good' is not a number from 0 to 1"),
        ({"good": math.nan, "fair": 0.5, "poor": 0}, "nan for 'good'"),
        ({"good": "1", "fair": 0.5, "poor": 0}, "'1' for 'good'"),
    ],
)
def test_scores_that_cannot_be_are_refused(make_judge: MakeJudge, scores: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        as_metric(make_judge(scale=Scale.categories("good", "fair", "poor")), scores=scores)


def test_a_criterion_of_what_is_bad_is_turned_round(make_judge: MakeJudge, polite: Polite) -> None:
    metric = as_metric(make_judge(polite.model), scores={"yes": 0, "no": 1})
    assert metric(QUESTION, SORRY).score == 0.0
    assert metric(QUESTION, WAIT).score == 1.0


def test_a_pairwise_judge_is_refused(make_judge: MakeJudge) -> None:
    with pytest.raises(ConfigurationError, match="pairwise scale gives no score, as it compares two outputs"):
        as_metric(make_judge(scale=Scale.pairwise()))


@pytest.mark.parametrize("settings", [{"passing": 0.0}, {"passing": 2.0}, {"abstained": -1.0}, {"inputs": 3}, {"outputs": [1]}])
def test_settings_that_cannot_be_are_refused(make_judge: MakeJudge, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        as_metric(make_judge(), **settings)


def test_what_is_graded_counts_as_a_number_and_is_true_when_it_passes(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(lambda _: says(3)), scale=Scale.score(1, 5))
    half, strict = as_metric(judge)(QUESTION, WAIT), as_metric(judge, passing=0.8)(QUESTION, WAIT)
    assert bool(half)
    assert not strict
    assert not strict.copy()
    assert strict.copy().toDict() == strict.toDict()
    assert float(half) == 0.5
    assert half + 1 == 1.5
    assert sum([half, half]) == 1.0
    assert half > 0.4
    assert half <= 0.5


# The reasons


def test_the_reasons_name_the_guidelines_where_something_is_missing(make_judge: MakeJudge, polite: Polite) -> None:
    judge = make_judge(polite.model)
    judge.align([Feedback(inputs={"question": "Where?"}, outputs="No.", value=False, rationale=rule) for rule in ("tone", "the date")][:1])
    judge.align([Feedback(inputs={"question": "When?"}, outputs="Later.", value=False, rationale="the date")])
    texts = [guideline.text for guideline in judge.memory.guidelines()]
    assert len(texts) == 2
    bad, good = as_metric(judge)(QUESTION, WAIT).feedback, as_metric(judge)(QUESTION, SORRY).feedback
    assert all(f"- {text}" in bad for text in texts)
    assert not any(text in good for text in texts)
    one = as_metric(judge, guidelines=1)(QUESTION, WAIT).feedback
    assert [text in one for text in texts] == [True, False]
    assert "and 1 more" in one
    assert not any(text in as_metric(judge, guidelines=0)(QUESTION, WAIT).feedback for text in texts)


def test_without_a_reason_the_criterion_says_what_was_judged(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(lambda _: "no"), explain=False)
    assert "What was judged: Is the reply polite?" in as_metric(judge)(QUESTION, WAIT).feedback


def test_gepa_gets_the_reasons_of_the_score_it_has_without_another_call(make_judge: MakeJudge, polite: Polite) -> None:
    metric = as_metric(make_judge(polite.model))
    scored = metric(QUESTION, WAIT)
    again = metric(QUESTION, WAIT, [], "predict", [])
    assert len(polite.judged) == 1
    assert again.feedback == scored.feedback
    assert again is not scored  # GEPA writes into it
    metric(QUESTION, WAIT)
    assert len(polite.judged) == 2
    metric(QUESTION, SORRY, [], "predict", [])
    assert len(polite.judged) == 3


# What is judged


def test_by_default_input_fields_and_prediction_are_judged_and_gold_is_not(make_judge: MakeJudge, polite: Polite) -> None:
    as_metric(make_judge(polite.model))(QUESTION, WAIT)
    assert "Where is my parcel?" in shown(polite)
    assert "Wait." in shown(polite)
    assert "Monday" not in shown(polite)


def test_equal_items_are_equal_in_feedback_and_metric(make_judge: MakeJudge, polite: Polite) -> None:
    judge = make_judge(polite.model)
    labelled = dspy.Example(question="Where is my parcel?", reply="Wait.", value=True, rationale="Fine here.").with_inputs("question")
    judge.align(feedback_from([labelled], judge.scale).records)
    metric = as_metric(judge)
    metric(QUESTION, WAIT)
    asked = judge.memory.episodes()[0].feedback
    assert asked.item.id == metric._places.item(QUESTION, WAIT).id
    assert (asked.inputs, asked.outputs) == ({"question": "Where is my parcel?"}, "Wait.")


def test_fields_are_chosen_renamed_and_made() -> None:
    items = importlib.import_module("memalign.integrations.dspy.items")
    reply = dspy.Prediction(reasoning="Hm.", reply="Wait.", tone="cold")
    assert items.Places().item(QUESTION, reply).outputs == {"reasoning": "Hm.", "reply": "Wait.", "tone": "cold"}
    assert items.Places(outputs="reply").item(QUESTION, reply).outputs == "Wait."
    assert items.Places(outputs=["reply", "tone"]).item(QUESTION, reply).outputs == {"reply": "Wait.", "tone": "cold"}
    assert items.Places(outputs={"answer": "reply"}).item(QUESTION, reply).outputs == {"answer": "Wait."}
    assert (
        items.Places(outputs=lambda example, found: f"{example.question} {found.reply}").item(QUESTION, reply).outputs == "Where is my parcel? Wait."
    )
    assert items.Places(expectations="gold").item(QUESTION, reply).expectations == "It comes on Monday."
    assert items.Places().item(QUESTION, reply).expectations is None
    assert items.Places().item({"question": "Where?"}, "Wait.") == items.Places().item(dspy.Example(question="Where?").with_inputs("question"), WAIT)


def test_structured_fields_become_json() -> None:
    items = importlib.import_module("memalign.integrations.dspy.items")

    class Order(BaseModel):
        number: int

    example = dspy.Example(order=Order(number=3), parts=(1, {"a": dspy.Example(b=2)})).with_inputs("order", "parts")
    assert items.Places().item(example, WAIT).inputs == {"order": {"number": 3}, "parts": [1, {"a": {"b": 2}}]}


@pytest.mark.parametrize(
    ("example", "prediction", "settings", "reason"),
    [
        (QUESTION, None, {}, "field 'outputs': the program gave no prediction"),
        (dspy.Example(question="Where?"), WAIT, {}, r"field 'inputs': the example does not say which fields are inputs; call .with_inputs"),
        (QUESTION, WAIT, {"outputs": "answer"}, "field 'answer': there is no field 'answer'; there are: reply"),
        (QUESTION, dspy.Prediction(reply=object()), {}, "field 'outputs': not a JSON value"),
        (QUESTION, dspy.Prediction(reply=math.inf), {}, "field 'outputs': not a JSON value"),
    ],
)
def test_what_cannot_be_judged_is_said_before_a_model_is_asked(
    make_judge: MakeJudge, polite: Polite, example: Any, prediction: Any, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadRecord, match=reason):
        as_metric(make_judge(polite.model), **settings)(example, prediction)
    assert polite.judged == []


# Failures are never a score


def test_failures_are_raised(make_judge: MakeJudge) -> None:
    broken = ScriptedChatModel(lambda _: ModelUnavailable("down"))
    with pytest.raises(ModelUnavailable):
        as_metric(make_judge(broken))(QUESTION, WAIT)


def test_an_evaluation_puts_its_failure_score_where_the_judge_failed(make_judge: MakeJudge) -> None:
    def answer(request: ChatRequest) -> Any:
        return ModelUnavailable("down") if "lost" in request.messages[-1].content else says("yes")

    examples = [dspy.Example(question=text).with_inputs("question") for text in ("Where?", "Is it lost?", "When?")]
    evaluate = dspy.Evaluate(devset=examples, metric=as_metric(make_judge(ScriptedChatModel(answer))), num_threads=2, failure_score=0.0, max_errors=9)
    assert evaluate(lambda question: WAIT).score == pytest.approx(66.67)


def test_an_abstention_is_an_error_unless_it_has_a_score(make_judge: MakeJudge) -> None:
    def unsure(request: ChatRequest) -> Any:
        return says("yes") if request.seed % 2 else says("no")

    judge = make_judge(ScriptedChatModel(unsure), abstain_below=0.99, votes=4)
    with pytest.raises(PermanentError, match="left this item to the experts"):
        as_metric(judge)(QUESTION, WAIT)
    graded = as_metric(judge, abstained=0.3)(QUESTION, WAIT)
    assert graded.score == 0.3
    assert "Verdict: left to the experts" in graded.feedback


# DSPy's optimizers


def test_bootstrapping_keeps_only_what_passes(make_judge: MakeJudge, polite: Polite) -> None:
    judge = make_judge(polite.model)
    kept = {}
    for reply in ("Wait.", "Sorry, it comes today."):
        with dspy.context(lm=ScriptedLM(reply)):
            optimizer = dspy.BootstrapFewShot(metric=as_metric(judge), max_bootstrapped_demos=1, max_labeled_demos=0)
            kept[reply] = len(optimizer.compile(dspy.Predict("question -> reply"), trainset=[QUESTION]).demos)
    assert kept == {"Wait.": 0, "Sorry, it comes today.": 1}


def test_simba_reads_score_and_reasons(make_judge: MakeJudge, polite: Polite) -> None:
    from dspy.teleprompt.simba_utils import wrap_program

    with dspy.context(lm=ScriptedLM("Wait.")):
        output = wrap_program(dspy.Predict("question -> reply"), as_metric(make_judge(polite.model)))(QUESTION)
    assert float(output["score"]) == 0.0
    assert sum(found["score"] for found in [output, output]) == 0.0
    if "output_metadata" in output:  # 3.0.0 reads no reasons
        assert "No apology." in output["output_metadata"]["feedback"]
    else:
        assert dspy.__version__.startswith("3.0.")


def test_refine_takes_it_as_a_reward(make_judge: MakeJudge, polite: Polite) -> None:
    refine = dspy.BestOfN(module=dspy.Predict("question -> reply"), N=1, reward_fn=as_metric(make_judge(polite.model)), threshold=0.5)
    with dspy.context(lm=ScriptedLM("Sorry, today.")):
        assert refine(question="Where is my parcel?").reply == "Sorry, today."
    assert "Where is my parcel?" in shown(polite)


def test_the_example_optimizes_a_program_with_gepa(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "dspy_gepa.py"))["main"]()
    before, after = capsys.readouterr().out.split("after: ")
    assert before.splitlines()[-2:] == ["before: Answer the customer.", "    Please wait."]
    assert "begin with an apology" in after
    assert "Sorry for the trouble." in after


# The module


def test_a_module_gives_the_verdict_and_what_it_rests_on(make_judge: MakeJudge, polite: Polite) -> None:
    judge = make_judge(polite.model)
    judge.align([Feedback(inputs="Where?", outputs="No.", value=False, rationale="tone")])
    module = as_module(judge)
    found = module(inputs={"question": "Where?"}, outputs=SORRY)
    assert (found.verdict, found.rationale, found.abstained) == (True, "It says sorry.", False)
    assert found.guidelines == [guideline.id for guideline in judge.memory.guidelines()]
    assert module.predictors() == []


async def _awaited(module: Any) -> Any:
    return await module.acall(inputs="Where?", outputs="Wait.")


def test_a_module_works_in_async_code_and_raises_failures(make_judge: MakeJudge, polite: Polite) -> None:
    import asyncio

    assert asyncio.run(_awaited(as_module(make_judge(polite.model)))).verdict is False
    with pytest.raises(ModelUnavailable):
        as_module(make_judge(ScriptedChatModel([ModelUnavailable("down")])))(outputs="Wait.")


def test_copies_of_a_program_share_the_memory_and_one_in_ram_is_not_saved(make_judge: MakeJudge, polite: Polite, tmp_path: Path) -> None:
    judge = make_judge(polite.model)
    module = as_module(judge)
    assert copy.deepcopy(module).judge is judge
    assert module.deepcopy().judge is judge
    with pytest.raises(ConfigurationError, match="is in RAM and cannot be saved"):
        pickle.dumps(module)
    kept = Judge("kind", "Is it kind?", Scale.boolean(), "openai/some", memory=str(tmp_path / "judge.db"))
    assert pickle.loads(pickle.dumps(as_module(kept))).judge.location == kept.location


# Feedback


def labelled(**more: Any) -> Any:
    fields = {"question": "Where is my parcel?", "reply": "Wait.", "value": "no", "rationale": "Too cold.", "annotator": "ann"}
    return dspy.Example(**(fields | more)).with_inputs("question")


def test_examples_become_feedback() -> None:
    found = feedback_from([labelled()], Scale.boolean())
    assert found.problems == ()
    (record,) = found.records
    assert (record.inputs, record.outputs, record.expectations) == ({"question": "Where is my parcel?"}, "Wait.", None)
    assert (record.value, record.rationale, record.annotator, record.source) == (False, "Too cold.", "ann", "dspy")


def test_the_fields_of_feedback_have_other_names() -> None:
    example = dspy.Example(q="Where?", draft="Wait.", gold="Monday.", score=4, why=None).with_inputs("q")
    scale = Scale.score(1, 5)
    found = feedback_from([example], scale, outputs="draft", expectations={"answer": "gold"}, value="score", rationale="why", source="ticket 7")
    (record,) = found.records
    assert (record.outputs, record.expectations, record.value, record.rationale, record.annotator) == ("Wait.", {"answer": "Monday."}, 4, "", "")
    assert record.source == "ticket 7"


def test_the_verdict_is_no_part_of_what_is_judged() -> None:
    found = feedback_from([labelled().with_inputs("question", "value", "rationale")], Scale.boolean())
    assert (found.records[0].inputs, found.records[0].outputs) == ({"question": "Where is my parcel?"}, "Wait.")
    bare = labelled().toDict()
    (problem,) = feedback_from([bare], Scale.boolean()).errors
    assert str(problem).startswith("row 1, field 'inputs': a plain object does not say which of its fields are inputs; name them with inputs=")
    (record,) = feedback_from([bare], Scale.boolean(), inputs=["question"]).records
    assert (record.inputs, record.outputs) == ({"question": "Where is my parcel?"}, "Wait.")


def test_bad_examples_are_named_and_good_ones_go_on(make_judge: MakeJudge) -> None:
    examples = [
        labelled(value=None),
        labelled(value="maybe"),
        "Where?",
        dspy.Example(question="Where?", reply="Wait.", value=True),
        labelled(rationale=3),
        labelled(reply=object()),
        labelled(rationale="half \ud800"),
        labelled(),
        labelled(),
        labelled(value="yes"),
        labelled(value="yes", annotator="bob"),
    ]
    found = feedback_from(examples, Scale.boolean())
    assert [(record.annotator, record.value) for record in found.records] == [("ann", False), ("bob", True)]
    said = [str(problem) for problem in found.errors]
    expected = ("row 1, field 'value': is missing", "row 2, field 'value': 'maybe' is not on the scale", "row 3: is not a dspy.Example but str")
    assert [text.startswith(start) for text, start in zip(said, expected, strict=False)] == [True] * 3
    assert said[3].startswith("row 4, field 'inputs': the example does not say which fields are inputs")
    assert said[4] == "row 5, field 'rationale': must be text, not int"
    assert said[5].startswith("row 6, field 'outputs': not a JSON value")
    assert said[6].startswith("row 7, field 'rationale': holds half of a surrogate pair")
    assert said[7] == "row 10, field 'value': the same annotator said otherwise of this item in example 8; keep one of the two"
    assert [str(problem) for problem in found.warnings] == ["row 9: says the same as example 8; it is read once"]
    assert make_judge().align(found.records).revision > 0
