"""What guidelines are worth, by leaving each out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from conftest import MakeJudge, record
from memalign.models.scripted import ScriptedChatModel
from test_verified_align import asked, judged, lessons


def test_a_guideline_is_worth_the_verdicts_that_are_wrong_without_it(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(judged)
    judge = make_judge(model)
    judge.align(lessons("good", "good", "bad", "idle"), verify="off")
    steps: list[tuple[str, int, int]] = []
    assert judge.utility(full=True, progress=lambda *step: steps.append(step)) == {"g1": 4.0, "g2": -1.0, "g3": 0.0}
    assert [guideline.utility for guideline in judge.memory.guidelines()] == [4.0, -1.0, 0.0]
    assert asked(model) == 10 * (1 + 3), "each record once with all of them, and once without each"
    assert steps[-1] == ("utility", 40, 40)
    judge.utility(full=True)
    assert asked(model) == 40, "what is known is not paid for again"
    assert len(judge.memory.history()) == 1, "a measurement is no change of memory"


def test_it_is_measured_on_few_records_of_which_half_are_its_own(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(judged)
    judge = make_judge(model)
    judge.align([*(record(number, "good") for number in range(1, 30)), *(record(number, value=True) for number in range(100, 130))], verify="off")
    assert judge.utility() == {"g1": 6.0}
    assert asked(model) == 24


def test_the_word_of_an_annotator_without_weight_measures_nothing(make_judge: MakeJudge) -> None:
    judge = make_judge(ScriptedChatModel(judged), weights={"guest": 0})
    given = lessons("good", "good", "bad", "idle")
    judge.align(given, verify="off")
    judge.align([replace(one, id="", annotator="guest", value=not one.value, rationale="") for one in given], verify="off")
    assert judge.utility(full=True) == {"g1": 4.0, "g2": -1.0, "g3": 0.0}


def test_a_guideline_without_verdicts_is_unknown(make_judge: MakeJudge) -> None:
    model = ScriptedChatModel(judged)
    judge = make_judge(model)
    judge.align(lessons("good"), verify="off")
    judge.session.model = ScriptedChatModel(lambda _: ConnectionError("down"))
    assert judge.utility() == {}
    assert judge.memory.guidelines()[0].utility is None
    assert make_judge().utility() == {}
    assert Counter(request.purpose for request in model.requests)["judge"] == 0
