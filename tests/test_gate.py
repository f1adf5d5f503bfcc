"""The gate: which effects count, which changes are to blame, what is replayed. Values in, values out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import record
from memalign import Scale
from memalign.agreement import mcnemar_p
from memalign.alignment.gate import Case, culprits, effect, enough, refusal, sample

YES_NO, STARS, PERCENT = Scale.boolean(), Scale.score(1, 5), Scale.score(0, 100)


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ([1, 1, 1], [0, 0, 0], "fixed"),
        ([0, 0, 0], [1, 1, 1], "broken"),
        ([0, 0, 0], [1, 0, 1], "unchanged"),  # the verdict with the change flips
        ([0, 1, 0], [1, 1, 1], "unchanged"),  # the verdict without it was right by luck
        ([1], [0], "fixed"),
        ([0, 0], [0, 0], "unchanged"),
    ],
)
def test_an_effect_is_what_all_verdicts_agree_on(before: list[float], after: list[float], what: str) -> None:
    assert effect(before, after, YES_NO.step) == what


def test_on_an_ordinal_scale_near_is_better_than_far() -> None:
    assert [STARS.distance(4, verdict) for verdict in (4, 5, 1)] == [0.0, 0.25, 0.75]
    assert [Scale.categories("good", "bad", "ugly").distance("good", verdict) for verdict in ("good", "ugly")] == [0.0, 1.0]
    assert effect([STARS.distance(5, 2)], [STARS.distance(5, 4)], STARS.step) == "fixed"
    assert effect([STARS.distance(5, 4)], [STARS.distance(5, 3)], STARS.step) == "broken"
    assert effect([PERCENT.distance(80, 79)], [PERCENT.distance(80, 72)], PERCENT.step) == "unchanged", "less than a tenth of the scale"
    assert effect([PERCENT.distance(80, 79)], [PERCENT.distance(80, 60)], PERCENT.step) == "broken"


def test_a_verdict_is_wrong_from_the_least_difference_that_counts_on() -> None:
    assert [STARS.wrong(4, verdict) for verdict in (4, 5, 3)] == [False, True, True]
    assert [PERCENT.wrong(72, verdict) for verdict in (72, 70, 63, 62, 82)] == [False, False, False, True, True]
    assert [YES_NO.wrong(True, verdict) for verdict in (True, False)] == [False, True]


def test_changes_may_stand_that_fix_and_break_nothing() -> None:
    assert refusal(errors=3, fixed=1, broken=0) is None
    assert refusal(errors=0, fixed=0, broken=0) is None
    assert refusal(errors=3, fixed=3, broken=1) == "breaks 1 record(s) that the judge gets right without it"
    assert refusal(errors=5, fixed=0, broken=0) == "fixes none of 5 error(s)"
    assert refusal(errors=4, fixed=0, broken=0) is None, "too few to say"


def test_a_quarter_may_fail() -> None:
    assert (enough(18, 24), enough(17, 24), enough(0, 0)) == (True, False, True)


@pytest.mark.parametrize(("fixed", "broken", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (10, 1, 0.01171875), (3, 3, 1.0)])
def test_exact_mcnemar(fixed: int, broken: int, p: float) -> None:
    assert mcnemar_p(fixed, broken) == p == mcnemar_p(broken, fixed)


def found(changes: list[int], breaks: Callable[[list[int]], bool]) -> tuple[list[int], list[int], int]:
    search, tests = culprits(changes), 0
    try:
        some = next(search)
        while True:
            tests += 1
            some = search.send(breaks(some))
    except StopIteration as end:
        return *end.value, tests


@given(st.integers(1, 40), st.data())
def test_the_culprits_are_found_and_nothing_else(count: int, data: st.DataObject) -> None:
    guilty = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=4))
    accepted, rejected, tests = found(list(range(count)), lambda some: bool(guilty & set(some)))
    assert rejected == sorted(guilty)
    assert accepted == [change for change in range(count) if change not in guilty]
    assert tests <= len(guilty) * (count.bit_length() + 1)


@given(st.integers(2, 30), st.data())
def test_two_that_break_only_together_lose_the_later_one(count: int, data: st.DataObject) -> None:
    one, other = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=2, max_size=2)))
    accepted, rejected, _ = found(list(range(count)), lambda some: {one, other} <= set(some))
    assert rejected == [other]
    assert len(accepted) == count - 1


@given(st.integers(1, 12), st.data())
def test_what_is_accepted_does_not_break_whatever_breaks(count: int, data: st.DataObject) -> None:
    """For any monotone notion of breaking, also of combinations."""
    pairs = list(combinations(range(count), 2)) or [(0, 0)]
    bad = data.draw(st.sets(st.sampled_from(pairs), min_size=1, max_size=5))
    accepted, rejected, _ = found(list(range(count)), lambda some: any({*pair} <= set(some) for pair in bad))
    assert not any({*pair} <= set(accepted) for pair in bad)
    assert sorted(accepted + rejected) == list(range(count))


def test_one_of_sixteen_takes_four_or_five_tests() -> None:
    assert found(list(range(16)), lambda some: 11 in some)[2] <= 5


def case(number: int, *changes: int, value: Any = False, missed: bool | None = None, annotator: str = "ann") -> Case:
    return Case(record=record(number, value=value, annotator=annotator), changes=frozenset(changes), missed=missed)


def numbers(cases: list[Case]) -> list[int]:
    return [int(str(case.record.outputs).split()[1]) for case in cases]


def test_half_of_a_sample_is_what_the_changes_rest_on_and_each_change_gets_its_turn() -> None:
    pool = [case(number, 0) for number in range(10)] + [case(10, 1), case(11, 2)] + [case(number) for number in range(20, 40)]
    assert numbers(sample(YES_NO, pool, 8)) == [9, 10, 11, 8, 39, 38, 37, 36]


def test_known_errors_come_first_among_targets_and_last_among_the_protected() -> None:
    pool = [case(1, 0, missed=True), case(2, 0, missed=False), case(3, 0), case(4, missed=True), case(5, missed=False), case(6)]
    assert numbers(sample(YES_NO, pool, 4)) == [1, 3, 6, 5]


def test_labels_take_turns_among_the_protected() -> None:
    pool = [case(number, value=True) for number in range(9)] + [case(20)]
    assert numbers(sample(YES_NO, pool, 4)) == [20, 8, 7, 6]


def test_room_that_one_half_leaves_is_filled_by_the_other() -> None:
    pool = [case(number, 0) for number in range(10)] + [case(20)]
    assert numbers(sample(YES_NO, pool, 6)) == [9, 8, 7, 6, 5, 20]
    pool = [case(0, 0)] + [case(number) for number in range(20, 30)]
    assert len(sample(YES_NO, pool, 6)) == 6
    assert len(sample(YES_NO, [case(number) for number in range(9)], 6)) == 6


def test_items_that_experts_disagree_about_have_no_right_verdict() -> None:
    pool = [case(1, 0), case(1, value=True, annotator="ben"), case(2), case(2, annotator="ben"), case(3)]
    assert numbers(sample(YES_NO, pool, None)) == [3, 2]


def test_near_verdicts_are_agreed_and_what_most_gave_is_right() -> None:
    pool = [case(1, value=4), case(1, value=5, annotator="ben"), case(2, value=1), case(2, value=5, annotator="ben"), case(3, value=3)]
    pool += [case(3, value=3, annotator="ben"), case(3, value=4, annotator="cat"), *(case(4, value=n, annotator=str(n)) for n in (3, 4, 5))]
    assert [(case.record.value, case.record.annotator) for case in sample(STARS, pool, None)] == [(3, "ben"), (5, "ben")]


def test_full_is_all() -> None:
    assert numbers(sample(YES_NO, [case(1), case(2, 0), case(3, 1, missed=True)], None)) == [3, 2, 1]
