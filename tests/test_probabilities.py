"""Label probabilities from hand-made token likelihoods."""

from __future__ import annotations

import math

import pytest

from memalign.models import TokenLogprobs
from memalign.probabilities import label_probabilities

YES_NO = ("yes", "no")


def token(text: str) -> TokenLogprobs:
    return TokenLogprobs(text, -0.01, ((text, -0.01),))


def choice(alternatives: dict[str, float]) -> TokenLogprobs:
    top = tuple((text, math.log(share)) for text, share in alternatives.items())
    return TokenLogprobs(top[0][0], top[0][1], top)


def test_bare_label_sums_spellings_and_normalises() -> None:
    reply = [choice({"Yes": 0.4, " yes": 0.1, "YES": 0.1, "no": 0.2, "The": 0.1})]
    assert label_probabilities(YES_NO, reply) == pytest.approx({"yes": 0.75, "no": 0.25})


def test_leading_white_space_and_quotes_are_passed_over() -> None:
    reply = [token("\n"), token(' "'), choice({"no": 0.9, "yes": 0.1}), token('"')]
    assert label_probabilities(YES_NO, reply) == pytest.approx({"yes": 0.1, "no": 0.9})


@pytest.mark.parametrize(
    "before", [['{"', "verdict", '":', ' "'], ['{"verdict": "'], ["{", '"verdict"', " : "], ["```json\n", '{"verdict":'], ['{"verdict":"']]
)
def test_json_verdict_is_found(before: list[str]) -> None:
    reply = [*map(token, before), choice({"yes": 0.8, "no": 0.2}), token('"}')]
    assert label_probabilities(YES_NO, reply) == pytest.approx({"yes": 0.8, "no": 0.2})


def test_a_rationale_that_quotes_the_key_does_not_mislead() -> None:
    reply = [
        token('{"rationale": "It says \\"verdict\\": \\"'),
        choice({"no": 0.99, "yes": 0.01}),
        token('\\", yet no.", "verdict": "'),
        choice({"yes": 0.7, "no": 0.3}),
        token('"}'),
    ]
    assert label_probabilities(YES_NO, reply) == pytest.approx({"yes": 0.7, "no": 0.3})


def test_a_token_may_hold_quote_and_label() -> None:
    reply = [token('{"verdict":'), choice({' "yes': 0.6, ' "no': 0.2, " true": 0.1}), token('"}')]
    assert label_probabilities(YES_NO, reply) == pytest.approx({"yes": 0.75, "no": 0.25})


def test_part_of_a_label_counts_for_it() -> None:
    reply = [choice({"accept": 0.5, "reject": 0.3, "rej": 0.2}), token("able")]
    assert label_probabilities(("acceptable", "rejected"), reply) == pytest.approx({"acceptable": 0.5, "rejected": 0.5})


def test_scores() -> None:
    reply = [token('{"verdict": '), choice({"4": 0.5, "5": 0.25, "3": 0.25}), token("}")]
    assert label_probabilities(tuple("12345"), reply) == pytest.approx({"1": 0, "2": 0, "3": 0.25, "4": 0.5, "5": 0.25})


def test_a_shared_first_token_gives_none() -> None:
    ten = tuple(map(str, range(1, 11)))
    assert label_probabilities(ten, [choice({"7": 0.6, "1": 0.4})]) is None
    assert label_probabilities(("good", "great"), [choice({"g": 0.9, "x": 0.1})]) is None


def test_one_and_ten_are_told_apart_when_ten_is_a_token_of_its_own() -> None:
    ten = tuple(map(str, range(1, 11)))
    found = label_probabilities(ten, [choice({"7": 0.6, "1": 0.1, "10": 0.3})])
    assert found is not None
    assert (found["7"], found["1"], found["10"]) == pytest.approx((0.6, 0.1, 0.3))


@pytest.mark.parametrize(
    "reply",
    [
        [],
        [token(""), token(" ")],
        [choice({"The": 0.5, "yes": 0.5})],
        [token('{"rationale": "cut short by the limit')],
        [token('{"verdict": "')],
        [TokenLogprobs("yes", -math.inf, ())],
        [TokenLogprobs("yes", math.nan, ())],
    ],
)
def test_what_cannot_be_told_is_none(reply: list[TokenLogprobs]) -> None:
    assert label_probabilities(YES_NO, reply) is None


def test_the_written_token_counts_even_if_it_is_not_among_the_alternatives() -> None:
    reply = [TokenLogprobs("yes", math.log(0.5), (("no", math.log(0.5)),))]
    assert label_probabilities(YES_NO, reply) == pytest.approx({"yes": 0.5, "no": 0.5})
