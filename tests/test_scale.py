"""Every scale: what is asked and what is accepted come from one object."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memalign.errors import BadRecord, ConfigurationError, UnreadableReply
from memalign.scale import Scale

BOOLEAN, SCORE, PAIRWISE = Scale.boolean(), Scale.score(1, 5), Scale.pairwise()
CATEGORIES = Scale.categories("good", "fair", "poor")
ALL = [
    BOOLEAN,
    SCORE,
    PAIRWISE,
    CATEGORIES,
    Scale.score(0, 100),
    Scale.pairwise(tie=False),
    Scale.categories("poor", "fair", "good", ordered=True),
    Scale.categories("Yes, partly", "C++", "n/a.", "größer"),
    Scale.categories("[a]", "b"),
]

scales = st.sampled_from(ALL)
any_scale = pytest.mark.parametrize("scale", ALL, ids=lambda scale: scale.spec)


@any_scale
def test_is_plain_data(scale: Scale) -> None:
    assert pickle.loads(pickle.dumps(scale)) == scale
    assert Scale.from_dict(json.loads(json.dumps(scale.to_dict()))) == scale
    assert Scale.parse_spec(scale.spec) == scale
    assert len({scale, Scale.from_dict(scale.to_dict())}) == 1
    assert len(scale.labels) == len(scale.values)


@any_scale
def test_prompt_names_the_answers(scale: Scale) -> None:
    for label in scale.labels if scale.kind != "score" else (scale.labels[0], scale.labels[-1]):
        assert label in scale.prompt()


def test_prompts() -> None:
    assert BOOLEAN.prompt() == "Answer yes if the criterion is met, no if it is not."
    assert SCORE.prompt() == "Answer with one whole number from 1 to 5. 1 is the worst and 5 is the best."
    assert CATEGORIES.prompt() == "Answer with exactly one of these labels: good, fair, poor."
    assert "in order" in Scale.categories("poor", "good", ordered=True).prompt()
    assert "tie" not in Scale.pairwise(tie=False).prompt()


@any_scale
@pytest.mark.parametrize("rationale", [True, False])
def test_schema_is_strict(scale: Scale, rationale: bool) -> None:
    schema = scale.schema(rationale)
    assert list(schema["properties"]) == schema["required"] == (["rationale", "verdict"] if rationale else ["verdict"])
    assert schema["additionalProperties"] is False
    verdict = schema["properties"]["verdict"]
    assert verdict == ({"type": "integer", "enum": list(scale.values)} if scale.kind == "score" else {"type": "string", "enum": list(scale.labels)})


@given(scales, st.data(), st.text(), st.booleans(), st.booleans())
def test_a_reply_that_fits_the_schema_is_read(scale: Scale, data: st.DataObject, reason: str, rationale: bool, fenced: bool) -> None:
    verdict = data.draw(st.sampled_from(scale.schema(rationale)["properties"]["verdict"]["enum"]))
    text = json.dumps({"rationale": reason, "verdict": verdict} if rationale else {"verdict": verdict})
    value, read = scale.parse(f"```json\n{text}\n```\n" if fenced else f" {text}\n", rationale=rationale)
    assert value == (verdict if scale.kind == "score" else scale.value_of(verdict))
    assert type(value) is type(scale.values[0])
    assert read == (reason.strip() if rationale else "")
    assert scale.value_of(scale.label_of(value)) == value


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda part: st.lists(part, max_size=3))


@given(scales, st.text() | json_values.map(json.dumps) | json_values.map(lambda value: json.dumps({"verdict": value})), st.booleans())
def test_any_text_is_read_or_unreadable(scale: Scale, text: str, rationale: bool) -> None:
    with suppress(UnreadableReply):
        assert scale.parse(text, rationale=rationale)[0] in scale.values
    with suppress(UnreadableReply):
        assert scale.parse_label(text) in scale.values


@given(scales, json_values)
def test_any_value_is_checked_or_refused(scale: Scale, value: object) -> None:
    with suppress(BadRecord):
        assert scale.check(value) in scale.values


@pytest.mark.parametrize(
    ("scale", "verdict", "value"),
    [
        (BOOLEAN, '"yes"', True),
        (BOOLEAN, '"No"', False),
        (BOOLEAN, '" YES "', True),
        (BOOLEAN, "true", True),
        (BOOLEAN, "false", False),
        (CATEGORIES, '" Good"', "good"),
        (SCORE, "4", 4),
        (SCORE, '"4"', 4),
        (PAIRWISE, '"A"', "a"),
        (PAIRWISE, '"b"', "b"),
        (PAIRWISE, '"Tie"', "tie"),
    ],
)
def test_verdicts_that_are_read(scale: Scale, verdict: str, value: object) -> None:
    read, _ = scale.parse(f'{{"verdict": {verdict}}}', rationale=False)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("scale", "verdict"),
    [
        (BOOLEAN, '"true"'),
        (BOOLEAN, "1"),
        (BOOLEAN, "null"),
        (BOOLEAN, '"yes and no"'),
        (BOOLEAN, "[true]"),
        (SCORE, "4.5"),
        (SCORE, "4.0"),
        (SCORE, "7"),
        (SCORE, "-1"),
        (SCORE, "true"),
        (SCORE, '"4 of 5"'),
        (SCORE, '"04"'),
        (SCORE, "NaN"),
        (SCORE, "9" * 5000),
        (CATEGORIES, '"excellent"'),
        (CATEGORIES, "0"),
        (Scale.pairwise(tie=False), '"tie"'),
    ],
)
def test_verdicts_off_the_scale_are_unreadable(scale: Scale, verdict: str) -> None:
    with pytest.raises(UnreadableReply):
        scale.parse(f'{{"verdict": {verdict}}}', rationale=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yes",
        '"yes"',
        '[{"verdict": "yes"}]',
        'Sure: {"rationale": "r", "verdict": "yes"}',
        '{"rationale": "r", "verdict": "yes"} Done.',
        '{"rationale": "r", "verdict": "yes"}{"rationale": "r", "verdict": "no"}',
        'Here:\n```json\n{"rationale": "r", "verdict": "yes"}\n```',
        '{"rationale": "r", "verdict": "yes"',
        '{"verdict": "yes"}',
        '{"rationale": "r"}',
        '{"rationale": null, "verdict": "yes"}',
        '{"rationale": "r", "verdict": "yes", "verdict": "no"}',
        '{"rationale": "r", "verdict": "yes", "score": 4}',
        "[" * 100_000,
    ],
)
def test_anything_but_the_reply_object_is_unreadable(text: str) -> None:
    with pytest.raises(UnreadableReply):
        BOOLEAN.parse(text, rationale=True)


def test_a_rationale_that_was_not_asked_for_is_unreadable() -> None:
    with pytest.raises(UnreadableReply, match="must have the keys"):
        BOOLEAN.parse('{"rationale": "r", "verdict": "yes"}', rationale=False)


@pytest.mark.parametrize("text", ["yes", " Yes\n", "YES.", '"yes"', "'Yes'.", '"yes."', "`yes`"])
def test_bare_labels(text: str) -> None:
    assert BOOLEAN.parse_label(text) is True


@pytest.mark.parametrize("text", ["", "yes!", "yes, it is", '""yes""', "yes..", '"yes', '"yes.".', "y", "true", "."])
def test_other_bare_text_is_unreadable(text: str) -> None:
    with pytest.raises(UnreadableReply):
        BOOLEAN.parse_label(text)


@any_scale
def test_every_label_is_read_bare_and_quoted(scale: Scale) -> None:
    for label, value in zip(scale.labels, scale.values, strict=True):
        assert scale.parse_label(label) == scale.parse_label(f'"{label}"') == scale.parse_label(f" {label}.") == value


@pytest.mark.parametrize(
    ("scale", "given", "value"),
    [
        (BOOLEAN, True, True),
        (BOOLEAN, np.False_, False),
        (BOOLEAN, " PASS ", True),
        (BOOLEAN, "n", False),
        (SCORE, 4.0, 4),
        (SCORE, " 4.0", 4),
        (SCORE, "5", 5),
        (SCORE, np.int64(3), 3),
        (SCORE, np.float32(3), 3),
        (CATEGORIES, "GOOD ", "good"),
        (PAIRWISE, "A", "a"),
    ],
)
def test_experts_values(scale: Scale, given: object, value: object) -> None:
    assert scale.check(given) == value
    assert type(scale.check(given)) is type(value)


@pytest.mark.parametrize(
    ("scale", "given"),
    [
        (BOOLEAN, 1),
        (BOOLEAN, 0.0),
        (BOOLEAN, "1"),
        (BOOLEAN, "maybe"),
        (BOOLEAN, None),
        (BOOLEAN, np.array([True])),
        (SCORE, True),
        (SCORE, 4.5),
        (SCORE, "4.5"),
        (SCORE, "4e0"),
        (SCORE, "٤"),
        (SCORE, 0),
        (SCORE, 10**400),
        (SCORE, float("nan")),
        (SCORE, float("inf")),
        (CATEGORIES, 1),
        (CATEGORIES, "bad"),
        (CATEGORIES, ["good"]),
        (Scale.pairwise(tie=False), "tie"),
    ],
)
def test_values_off_the_scale_are_refused(scale: Scale, given: object) -> None:
    with pytest.raises(BadRecord, match="accepted: ") as caught:
        scale.check(given)
    assert caught.value.field == "value"


def test_unknown_labels_and_values_are_refused() -> None:
    with pytest.raises(BadRecord, match="known: yes, no"):
        BOOLEAN.value_of("maybe")
    with pytest.raises(BadRecord, match="whole numbers from 1 to 5"):
        SCORE.label_of(6)


@pytest.mark.parametrize("labels", [(), ("one",), ("a", "A "), ("a", ""), ("a", "b\nc"), ("a", 1)])
def test_impossible_categories(labels: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError):
        Scale.categories(*labels)


@pytest.mark.parametrize(("low", "high"), [(5, 1), (1, 1), (-1, 5), (0, 101), (1.0, 5), (False, True)])
def test_impossible_scores(low: int, high: int) -> None:
    with pytest.raises(ConfigurationError):
        Scale.score(low, high)


@pytest.mark.parametrize(
    "spec",
    ["", "bool", "score", "score:1", "score:5-1", "score:a-b", "boolean:x", "pairwise:x", "categories", "categories:a", 'categories:["a"'],
)
def test_unknown_specs(spec: str) -> None:
    with pytest.raises(ConfigurationError):
        Scale.parse_spec(spec)


def test_specs() -> None:
    assert Scale.parse_spec(" Score: 1 - 5 ") == SCORE
    assert Scale.parse_spec("categories:good, fair,poor") == CATEGORIES
    assert Scale.parse_spec("ordered:poor,good").ordinal
    assert Scale.parse_spec("pairwise:no-tie").values == ("a", "b")


@pytest.mark.parametrize("data", [{}, {"kind": "stars"}, {"kind": "score", "low": "1", "high": 5}, {"kind": "categories", "labels": "good"}])
def test_unknown_dictionaries(data: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Scale.from_dict(data)


@pytest.mark.parametrize(
    ("scale", "values", "near"),
    [
        (Scale.score(1, 5), [4, 5], True),
        (Scale.score(1, 5), [3, 4, 5], False),
        (Scale.score(1, 5), [1, 5], False),
        (Scale.score(0, 100), [70, 80], True),
        (Scale.score(0, 100), [70, 81], False),
        (Scale.score(0, 1), [0, 1], False),
        (Scale.categories("poor", "fair", "good", ordered=True), ["Fair", "good"], True),
        (Scale.categories("poor", "fair", "good", ordered=True), ["poor", "good"], False),
        (Scale.categories("poor", "fair", "good"), ["fair", "good"], False),
        (Scale.boolean(), [True, False], False),
        (Scale.boolean(), [True, True], True),
        (Scale.score(1, 5), [], True),
    ],
)
def test_verdicts_that_are_near(scale: Scale, values: list[object], near: bool) -> None:
    assert scale.near(values) is near


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, memalign.scale; print([m for m in ('numpy', 'pydantic', 'scipy', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
