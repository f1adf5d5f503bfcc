"""Experts among themselves: agreement, contested items."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from conftest import MakeJudge, record
from memalign import BadRecord, Feedback, Scale
from memalign.panel import Panel, panel


def said(item: int, **verdicts: object) -> list[Feedback]:
    return [record(item, value=value, annotator=name) for name, value in verdicts.items()]


def nominal() -> list[Feedback]:
    """The data of Krippendorff's own example of two observers and ten units (Content Analysis, 2004, section 11.3): alpha = .095."""
    first, second = "0100000000", "1110011000"
    return [f for n, (a, b) in enumerate(zip(first, second, strict=True)) for f in said(n, meg=a == "1", owen=b == "1")]


def test_alpha_is_that_of_the_text_book() -> None:
    found = panel(Scale.boolean(), nominal())
    assert found.alpha is not None
    assert found.alpha.value == pytest.approx(0.095, abs=0.0005)
    assert found.alpha.low <= found.alpha.value <= found.alpha.high
    assert found.shared == 10
    assert found.records == {"meg": 10, "owen": 10}


def test_an_item_of_one_expert_says_nothing() -> None:
    one = [record(n, annotator="meg") for n in range(3)]
    found = panel(Scale.boolean(), one)
    assert (found.alpha, found.shared, found.pairs, found.contested, found.lines()) == (None, 0, (), (), [])


def test_perfect_agreement_is_one_and_equal_verdicts_are_undefined() -> None:
    agree = [f for n in range(6) for f in said(n, meg=n % 2 == 0, owen=n % 2 == 0)]
    perfect = panel(Scale.boolean(), agree)
    assert perfect.alpha is not None
    assert perfect.alpha.value == 1.0
    assert perfect.contested == ()
    same = panel(Scale.boolean(), [f for n in range(6) for f in said(n, meg=True, owen=True)])
    assert same.alpha is None
    assert same.pairs[0].kappa is None


def test_experts_who_always_disagree_are_below_chance() -> None:
    found = panel(Scale.boolean(), [f for n in range(8) for f in said(n, meg=n % 2 == 0, owen=n % 2 == 1)])
    assert found.alpha is not None
    assert found.alpha.value < 0
    assert len(found.contested) == 8
    assert found.pairs[0].accuracy.value == 0.0


def test_near_misses_count_less_on_an_ordinal_scale() -> None:
    near = [f for n, (a, b) in enumerate([(1, 2), (4, 5), (2, 1), (5, 4), (3, 3)]) for f in said(n, meg=a, owen=b)]
    ordinal, unordered = panel(Scale.score(1, 5), near), panel(Scale.categories(*"12345"), [_as_text(f) for f in near])
    assert ordinal.alpha is not None
    assert unordered.alpha is not None
    assert ordinal.alpha.value > 0.7 > 0.2 > unordered.alpha.value


def _as_text(feedback: Feedback) -> Feedback:
    return record(int(str(feedback.inputs).split()[-1]), value=str(feedback.value), annotator=feedback.annotator)


def test_contested_items_come_widest_apart_first_and_all_opinions_are_there() -> None:
    records = said(1, meg=3, owen=5) + said(4, meg=4, owen=5) + said(2, meg=1, owen=5, ida=1) + said(3, meg=2, owen=2)
    found = panel(Scale.score(1, 5), records)
    assert [[f.value for f in contested] for contested in found.contested] == [[1, 5, 1], [3, 5]]
    assert "meg says 1, owen says 5, ida says 1: input: question 2" in " ".join(found.lines())


def test_many_experts_do_not_flood_the_reader() -> None:
    crowd = [f for n in range(12) for f in said(n, **{f"worker{n}": True, f"worker{n + 1}": False}, boss=True)]
    found = panel(Scale.boolean(), crowd)
    lines = found.lines()
    assert (len(found.records), len(found.pairs)) == (14, 25)
    assert lines[0].startswith("experts on 12 items that several judged: boss 12, ")
    assert lines[0].endswith(" and 4 more")
    assert sum(" same verdict " in line for line in lines) == 10
    assert "boss and worker3: same verdict" in " ".join(lines), "those with the most shared items"
    assert "and 15 more pairs of experts" in lines


def test_the_newest_record_of_an_expert_counts() -> None:
    early, late = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    records = [
        record(1, value=True, annotator="meg", id="new", created_at=late),
        record(1, value=False, annotator="meg", id="old", created_at=early),
        record(1, value=True, annotator="owen"),
    ]
    assert panel(Scale.boolean(), records).contested == ()


def test_the_dictionary_is_plain_and_the_intervals_repeat() -> None:
    first, second = panel(Scale.boolean(), nominal()), panel(Scale.boolean(), nominal())
    assert first.to_dict() == second.to_dict()
    assert first.to_dict()["contested"][0] == [f.id for f in first.contested[0]]
    assert not any(isinstance(value, float) and math.isnan(value) for value in (first.to_dict()["alpha"] or {}).values())


def test_a_judge_measures_what_it_holds_together_with_what_is_new(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([*said(1, meg=True, owen=False), record(2, value=True, annotator="meg"), record(3, value=True, annotator="meg")])
    before: Panel = judge.panel()
    after = judge.panel([record(2, value=False, annotator="owen")])
    assert (before.shared, after.shared) == (1, 2)
    assert len(after.contested) == 2
    with pytest.raises(BadRecord):
        judge.panel([record(1, value="off the scale")])


def test_a_record_that_is_about_to_replace_another_is_not_measured_against_it(make_judge: MakeJudge) -> None:
    judge = make_judge()
    judge.align([record(n, value=n % 2 == 0, annotator="meg", id=f"r{n}") for n in range(4)])
    assert judge.panel([record(n, value=n % 2 == 0, annotator="owen", id=f"r{n}") for n in range(4)]).shared == 0
    judge.align(said(9, meg=True, owen=True))
    changed = record(9, value=False, annotator="owen", created_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert len(judge.panel([changed]).contested) == 1
