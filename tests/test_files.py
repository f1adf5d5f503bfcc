"""Feedback and items in real files, good and bad."""

from __future__ import annotations

import builtins
import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memalign.errors import ConfigurationError, MissingExtra
from memalign.files import ItemRow, ReadResult, iter_feedback, read_feedback, read_items, write_feedback
from memalign.records import Feedback, Item
from memalign.rows import RowProblem, write_rows
from memalign.scale import Scale

BOOLEAN, SCORE = Scale.boolean(), Scale.score(1, 5)
GOOD = {"inputs": {"question": "Where?"}, "outputs": "There.", "value": True, "rationale": "It says where."}
FORMATS = ["jsonl", "csv", "tsv", "parquet"]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write bytes, text, or JSON rows to a file in the test's folder."""

    def save(content: Any, name: str = "feedback.jsonl") -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            content = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return save


def told(result: ReadResult[Any]) -> list[tuple[int, str]]:
    return [(problem.row, problem.field) for problem in result.errors]


def test_a_good_row_becomes_a_record(save: Callable[..., Path]) -> None:
    result = read_feedback(save([GOOD | {"id": "f1", "annotator": "ann", "created_at": "2026-02-14T09:30:00+01:00", "source": "t-7"}]), BOOLEAN)
    expected = Feedback(**GOOD, id="f1", annotator="ann", source="t-7", created_at=datetime(2026, 2, 14, 9, 30, tzinfo=timezone(timedelta(hours=1))))
    assert result == ReadResult((expected,), ())


def test_defaults(save: Callable[..., Path]) -> None:
    row = {"inputs": None, "outputs": "There.", "label": "no", "id": 17, "annotator": 4, "rationale": None, "created_at": "2026-02-14"}
    (record,) = read_feedback(save([row]), BOOLEAN).records
    assert record.value is False
    assert (record.id, record.annotator, record.rationale, record.source) == ("17", "4", "", "feedback.jsonl")
    assert record.created_at == datetime(2026, 2, 14, tzinfo=UTC)


def test_blank_lines_and_a_byte_order_mark_do_not_matter(save: Callable[..., Path]) -> None:
    assert len(read_feedback(save(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\n   \n"), BOOLEAN).records) == 1
    table = read_feedback(save("\ufeffoutputs,value\r\nThere.,yes\r\n\r\n", "a.csv"), BOOLEAN)
    assert [record.outputs for record in table.records] == ["There."]


@pytest.mark.parametrize(
    ("bad", "field", "reason"),
    [
        ('{"outputs": "cut sho', "", "is not complete JSON"),
        ("not json", "", "is not complete JSON"),
        ("[1, 2]", "", "must be a JSON object, not a list"),
        ("null", "", "must be a JSON object, not null"),
        ("3", "", "must be a JSON object, not a number"),
        ('{"outputs": NaN, "value": true}', "", "NaN is not JSON"),
        ('{"outputs": "\\ud800", "value": true}', "", "surrogate"),
        ("[" * 100_000, "", "not usable JSON"),
        ('{"outputs": ' + "9" * 5000 + ', "value": true}', "", "not usable JSON"),
        (GOOD | {"value": None}, "value", "is missing"),
        (GOOD | {"value": "  "}, "value", "is missing"),
        (GOOD | {"value": 1}, "value", "accepted: true, yes"),
        (GOOD | {"value": "perhaps"}, "value", "'perhaps' is not on the scale"),
        (GOOD | {"label": False}, "label", "says False, but value says True"),
        (GOOD | {"label": "perhaps"}, "label", "not on the scale"),
        ({"value": True}, "outputs", "inputs and outputs are both missing"),
        (GOOD | {"rationale": 3}, "rationale", "must be text, not int"),
        (GOOD | {"annotator": ["ann"]}, "annotator", "must be text, not list"),
        (GOOD | {"id": True}, "id", "must be text, not bool"),
        (GOOD | {"created_at": "yesterday"}, "created_at", "'yesterday' is not a time"),
        (GOOD | {"created_at": 1_700_000_000}, "created_at", "must be a time"),
    ],
)
def test_a_bad_row_is_named_and_the_good_ones_go_on(save: Callable[..., Path], bad: Any, field: str, reason: str) -> None:
    result = read_feedback(save([GOOD, bad, GOOD | {"outputs": "Elsewhere."}]), BOOLEAN)
    assert [record.outputs for record in result.records] == ["There.", "Elsewhere."]
    assert told(result) == [(2, field)]
    assert reason in result.problems[0].reason
    assert str(result.problems[0]).startswith("row 2")


def test_the_scale_decides_what_a_value_is(save: Callable[..., Path]) -> None:
    path = save([GOOD | {"outputs": f"{value}", "value": value} for value in (1, "2", 3.0, 4.5, True, 9)])
    result = read_feedback(path, SCORE)
    assert [record.value for record in result.records] == [1, 2, 3]
    assert told(result) == [(4, "value"), (5, "value"), (6, "value")]


@pytest.mark.parametrize("name", ["feedback.jsonl", "feedback.csv"])
def test_bytes_that_are_not_utf8_spoil_their_line_only(save: Callable[..., Path], name: str) -> None:
    lines = [b'{"outputs": "caf\xe9", "value": true}', b'{"outputs": "caf\xc3\xa9", "value": true}']
    if name.endswith("csv"):
        lines = [b"outputs,value", b"caf\xe9,yes", b"caf\xc3\xa9,yes"]
    result = read_feedback(save(b"\n".join(lines), name), BOOLEAN)
    assert [record.outputs for record in result.records] == ["café"]
    assert len(result.problems) == 1
    assert "is not valid UTF-8" in result.problems[0].reason
    assert result.problems[0].reason.endswith("; save the file as UTF-8")
    assert result.problems[0].row == len(lines) - 1


def test_utf16_is_said_plainly(save: Callable[..., Path]) -> None:
    assert "UTF-16" in read_feedback(save(json.dumps(GOOD).encode("utf-16")), BOOLEAN).problems[0].reason
    assert "UTF-8" in read_feedback(save("outputs,value\nx,yes\n".encode("utf-16"), "a.csv"), BOOLEAN).problems[0].reason


def test_long_fields_are_refused_by_name_and_limit(save: Callable[..., Path]) -> None:
    long = GOOD | {"outputs": "Dort.", "rationale": "é" * 60}
    path = save([long, GOOD, GOOD | {"inputs": {"q": "x" * 130}}, GOOD | {"outputs": "y" * 5000}])
    result = read_feedback(path, BOOLEAN, max_field_bytes=119)
    assert len(result.records) == 1
    assert told(result) == [(1, "rationale"), (3, "inputs"), (4, "")]
    assert result.problems[0].reason == "has 120 bytes, the limit (max_field_bytes) is 119; shorten it"
    assert len(read_feedback(path, BOOLEAN).records) == 4
    table = save("outputs,value\n" + "z" * 200_000 + ",yes\nshort,yes\n", "a.csv")
    assert told(read_feedback(table, BOOLEAN, max_field_bytes=150_000)) == [(2, "outputs")]
    assert len(read_feedback(table, BOOLEAN).records) == 2


def test_more_than_ten_megabytes_in_one_field_leave_the_other_rows_alone(save: Callable[..., Path]) -> None:
    result = read_feedback(save([GOOD | {"outputs": "x" * 10_000_001}, GOOD, GOOD | {"outputs": "y" * 10_000_000}]), BOOLEAN)
    assert [len(record.outputs) for record in result.records] == [len(GOOD["outputs"]), 10_000_000]
    assert str(result.problems[0]) == "row 1, field 'outputs': has 10,000,001 bytes, the limit (max_field_bytes) is 10,000,000; shorten it"


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
@pytest.mark.parametrize("name", ["feedback.jsonl", "feedback.csv"])
def test_an_empty_file_is_told_what_a_row_looks_like(save: Callable[..., Path], name: str, content: str) -> None:
    result = read_feedback(save(content, name), SCORE)
    assert result.records == ()
    example = '{"inputs": {"question": "..."}, "outputs": "...", "value": 1, "rationale": "why"}'
    assert result.problems == (RowProblem(0, "", f"the file has no rows; a row looks like {example}"),)
    assert "value" not in read_items(save(content, name)).problems[0].reason


def test_a_missing_file_is_told_with_advice(save: Callable[..., Path], tmp_path: Path) -> None:
    save([GOOD])
    with pytest.raises(ConfigurationError, match=r"there is no file .*; did you mean 'feedback\.jsonl'\?"):
        read_feedback(tmp_path / "fedback.jsonl", BOOLEAN)
    with pytest.raises(ConfigurationError, match="check the path"):
        read_feedback(tmp_path / "nowhere" / "x.csv", BOOLEAN)
    with pytest.raises(ConfigurationError, match="there is no file"):
        read_feedback(tmp_path / "x.parquet", BOOLEAN)
    with pytest.raises(ConfigurationError, match=r"known endings: \.jsonl"):
        read_feedback(tmp_path / "x.xlsx", BOOLEAN)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_feedback(tmp_path / "folder.jsonl", BOOLEAN)


def test_unknown_columns_are_remarked_once_with_the_closest_name(save: Callable[..., Path]) -> None:
    rows = [GOOD | {"outputs": f"{n}", "rationalle": "r", "zzz": 1, "ticket": 2} for n in range(3)]
    result = read_feedback(save(rows), BOOLEAN, ignore=["ticket"])
    assert len(result.records) == 3
    assert result.errors == ()
    assert [(problem.row, problem.field) for problem in result.warnings] == [(1, "rationalle"), (1, "zzz")]
    assert "did you mean 'rationale'?" in result.warnings[0].reason
    assert "known: id, inputs" in result.warnings[1].reason


def test_a_known_column_can_be_ignored(save: Callable[..., Path]) -> None:
    result = read_feedback(save([GOOD | {"created_at": "yesterday"}]), BOOLEAN, ignore={"created_at", "rationale"})
    assert result.problems == ()
    assert result.records[0].rationale == ""


def test_one_id_with_two_contents_is_a_problem_and_a_repeat_a_remark(save: Callable[..., Path]) -> None:
    one = GOOD | {"id": "f1"}
    result = read_feedback(save([one, one, one | {"value": False}, GOOD, GOOD | {"rationale": "Other."}]), BOOLEAN)
    assert result.records[0].id == "f1"
    assert len(result.records) == 2
    assert told(result) == [(3, "id"), (5, "id")]
    assert "row 1 has the same id 'f1' with other content" in result.errors[0].reason
    assert result.warnings == (RowProblem(2, "", "says the same as row 1; it is read once", warning=True),)


def test_csv_cells(save: Callable[..., Path]) -> None:
    header = "inputs,outputs,expectations,value,annotator\n"
    body = '"{""question"": ""Where?""}","[1, 2]",{not json,yes,ann\n[],"two\nlines",3,NO,\n'
    result = read_feedback(save(header + body, "a.csv"), BOOLEAN)
    first, second = result.records
    assert (first.inputs, first.outputs, first.expectations, first.value) == ({"question": "Where?"}, [1, 2], "{not json", True)
    assert (second.inputs, second.outputs, second.expectations, second.annotator) == ([], "two\nlines", "3", "")


def test_white_space_behind_the_commas_of_a_csv_makes_no_other_annotator_and_no_other_id(save: Callable[..., Path]) -> None:
    result = read_feedback(save("id, outputs, value, annotator\nr1, a reply, yes, ann\n r2,another , no,ann \nr3,third,no, \n", "a.csv"), BOOLEAN)
    assert [(f.id, f.annotator) for f in result.records] == [("r1", "ann"), ("r2", "ann"), ("r3", "")]
    assert [f.outputs for f in result.records] == [" a reply", "another ", "third"]


def test_csv_rows_are_named_by_the_line_they_start_on(save: Callable[..., Path]) -> None:
    body = 'outputs,value\n"two\nlines",yes\nx,perhaps\na,b,c\nalone\n"x" y,yes\nlast,no\n"never closed,yes\nlost,yes\n'
    result = read_feedback(save(body, "a.csv"), BOOLEAN)
    assert [record.outputs for record in result.records] == ["two\nlines", "last"]
    assert told(result) == [(4, "value"), (5, ""), (6, ""), (7, ""), (9, "")]
    assert "has 3 cells, the header has 2" in result.problems[1].reason
    assert "is not readable CSV" in result.problems[3].reason
    assert "line" not in result.problems[3].reason
    assert "is not readable CSV" in result.problems[4].reason


def test_a_quote_that_is_not_closed_says_which_lines_it_takes_with_it(save: Callable[..., Path]) -> None:
    result = read_feedback(save('outputs,value\nfirst,yes\n"never closed,yes\nlost,yes\nlost too,no\n', "a.csv"), BOOLEAN)
    assert [record.outputs for record in result.records] == ["first"]
    assert "row 3: " in str(result.problems[0])
    assert result.problems[0].reason.endswith("; lines 3 to 5 are read as this one row: look for a quote that is not closed")
    closed_later = read_feedback(save('outputs,value\n"never closed,yes\n"lost",yes\nlast,no\n', "b.csv"), BOOLEAN)
    assert [record.outputs for record in closed_later.records] == ["last"]
    assert "lines 2 to 3 are read as this one row" in closed_later.problems[0].reason


@pytest.mark.parametrize(
    ("header", "field", "reason"),
    [
        ("outputs,value,value", "value", "stands twice"),
        ("outputs,verdict", "", "there is no column 'value' (or 'label')"),
        ("question,value", "", "there is no column 'outputs' or 'inputs'"),
        ("It was fine.,yes", "", "there is no column"),
    ],
)
def test_a_wrong_header_is_said_once(save: Callable[..., Path], header: str, field: str, reason: str) -> None:
    cells = header.count(",") + 1
    result = read_feedback(save("\n".join([header, *[",".join(["x"] * cells)] * 5]), "a.csv"), BOOLEAN)
    assert result.records == ()
    assert told(result) == [(1, field)]
    assert reason in result.errors[0].reason


def test_items_need_no_value_and_keep_their_id(save: Callable[..., Path]) -> None:
    rows = [
        {"id": "i1", "outputs": "There."},
        {"outputs": "There."},
        {"outputs": "There.", "label": "yes"},
        {"id": "i1", "outputs": "Else."},
    ]
    result = read_items(save(rows), BOOLEAN)
    item = Item(outputs="There.")
    assert result.records == (
        ItemRow(row=1, id="i1", item=item),
        ItemRow(row=2, id=item.id, item=item),
        ItemRow(row=3, id=item.id, item=item, value=True),
    )
    assert told(result) == [(4, "id")]
    assert read_items(save([GOOD | {"value": "anything"}])).records[0].value is None
    assert told(read_items(save([{"id": "i1"}]))) == [(1, "outputs")]


RECORDS = [
    Feedback(inputs={"q": "Wo?", "n": [1, None]}, outputs="Dort – „hier“", value=True, rationale='With "quotes",\nlines', annotator="ann"),
    Feedback(inputs="plain", outputs={"a": 1.5}, expectations=["x"], value=False, source="ticket 7"),
    Feedback(outputs="only", value=True, id="own id"),
]


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    assert write_feedback(path, iter(RECORDS)) == 3
    result = read_feedback(path, BOOLEAN)
    expected = [record if record.source else replace(record, source=path.name) for record in RECORDS]
    assert result == ReadResult(tuple(expected), ())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3),
    max_leaves=8,
)
feedback = st.builds(
    Feedback,
    inputs=json_values,
    outputs=json_values.filter(lambda value: value is not None),
    expectations=json_values,
    value=st.integers(1, 5),
    rationale=st.text(),
    annotator=st.text(),
    source=st.text(min_size=1),
    created_at=st.datetimes(timezones=st.just(UTC)),
)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(records=st.lists(feedback, min_size=1, max_size=4, unique_by=lambda record: record.id))
def test_any_feedback_survives_the_round_trip(tmp_path: Path, suffix: str, records: list[Feedback]) -> None:
    write_feedback(tmp_path / f"any.{suffix}", records)
    assert read_feedback(tmp_path / f"any.{suffix}", SCORE) == ReadResult(tuple(records), ())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary() | st.text().map(str.encode), name=st.sampled_from(["a.jsonl", "a.csv", "a.parquet"]))
def test_any_bytes_are_read_or_reported(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    result = read_feedback(tmp_path / name, BOOLEAN)
    assert result.records or result.problems


def test_parquet_from_elsewhere(tmp_path: Path) -> None:
    columns = {
        "inputs": [{"question": "a"}, {"question": "b"}, {"question": "c"}, {"question": "d"}],
        "outputs": ["{kept as text}", "y", "z", "w"],
        "label": pyarrow.array([1.0, None, 2.5, 5.0]),
        "id": [1, 2, 3, 4],
        "created_at": pyarrow.array([1_700_000_000_123_456_789, None, None, None], pyarrow.timestamp("ns")),
        "tags": [["x"], [], [], []],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    result = read_feedback(tmp_path / "a.parquet", SCORE)
    assert [(record.id, record.value, record.inputs["question"]) for record in result.records] == [("1", 1, "a"), ("4", 5, "d")]
    assert result.records[0].created_at == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert told(result) == [(2, "value"), (3, "label")]
    assert [problem.field for problem in result.warnings] == ["tags"]


def test_parquet_cells_that_are_not_json(tmp_path: Path) -> None:
    text = pyarrow.array([b"fine", b"caf\xe9", b"fine too", b"x"]).view(pyarrow.utf8())
    columns = {"inputs": [b"bytes", None, None, None], "outputs": text, "value": [True] * 4, "created_at": [date(2026, 2, 14)] * 4}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    result = read_feedback(tmp_path / "a.parquet", BOOLEAN)
    assert [record.outputs for record in result.records] == ["fine too", "x"]
    assert told(result) == [(1, "inputs"), (2, "outputs")]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_parquet_that_is_none(save: Callable[..., Path], content: bytes) -> None:
    result = read_feedback(save(content, "a.parquet"), BOOLEAN)
    assert told(result) == [(0, "")]
    assert "is not a readable Parquet file" in result.problems[0].reason
    assert result.problems[0].reason.endswith("; write it anew, or as .jsonl or .csv")


def test_parquet_without_rows(tmp_path: Path) -> None:
    write_feedback(tmp_path / "a.parquet", [])
    assert "a row looks like" in read_feedback(tmp_path / "a.parquet", BOOLEAN).problems[0].reason


def test_parquet_without_pyarrow(save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(b"", "a.parquet")
    plain_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return plain_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"memalign\[parquet\]"):
        read_feedback(path, BOOLEAN)


def test_standard_input_and_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_feedback("-", RECORDS) == 3
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(capsys.readouterr().out.encode())))
    result = read_feedback("-", BOOLEAN)
    assert [record.source for record in result.records] == ["stdin", "ticket 7", "stdin"]
    assert [record.id for record in result.records] == [record.id for record in RECORDS]


def test_a_file_that_cannot_be_written_is_told_and_an_old_one_stays(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot write"):
        write_feedback(tmp_path / "nowhere" / "a.jsonl", RECORDS)
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(path, ["n"], [{"n": 1}, {"n": float("nan")}])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_rows_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["outputs", "value"], *([f"{n}", "yes"] for n in range(1000))])
    records = iter_feedback(path, BOOLEAN)
    first = next(records)
    assert isinstance(first, Feedback)
    assert first.outputs == "0"
    records.close()  # type: ignore[attr-defined]
