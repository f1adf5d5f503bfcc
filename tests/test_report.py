"""The report of an alignment, as text, page and data: everything in it, and nothing in it can do harm."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pytest

from memalign.alignment import AlignReport, FailedBatch, Refused, Replayed, Verification
from memalign.alignment.operations import Rejected
from memalign.alignment.proof import chance
from memalign.records import Guideline, Usage

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def guideline(key: str, text: str, **more: Any) -> Guideline:
    return Guideline(id=key, version=1, text=text, evidence_for=("r1", "r2"), **more)


def replayed(key: str) -> Replayed:
    return Replayed(feedback_id=key, item=f"output: {EVIL}", expert="no", before="yes", after="no")


def full() -> AlignReport:
    refused = Refused(text="Held back.", reason="breaks 1 record(s)", tried_with=2, broken=(replayed("b1"),), p_value=0.5, guideline_id="g9")
    proof = Verification(
        mode="fast",
        outcome="partly",
        fixed=(replayed("f1"), replayed("f2")),
        unsteady=(replayed("u1"),),
        unchanged=7,
        errors=3,
        protected=9,
        failures=1,
        p_value=0.0312,
        refused=(refused,),
        replays=40,
    )
    return AlignReport(
        revision=7,
        new=3,
        added=(guideline("g8", f"Added. {EVIL}"), guideline("g9", "Held back.", state="candidate")),
        joined=(guideline("g2", "Joined."),),
        refined=(guideline("g3", "Refined."),),
        superseded=(guideline("g4", "Superseded."),),
        quarantined=(guideline("g5", "Quarantined."),),
        archived=(guideline("g6", "Archived."),),
        retired=(guideline("g7", "Retired."),),
        rejected=(Rejected("Always say yes.", "orders one verdict"),),
        contested=("item-1",),
        failed_batches=(FailedBatch(feedback_ids=("r7", "r8"), error=f"503 {EVIL}", retryable=True),),
        unconsumed=2,
        verification=proof,
        usage=Usage(calls=12, prompt_tokens=34567, cached_tokens=30000, completion_tokens=89),
        cost_usd=0.0123,
        seconds=4.56,
    )


class Page(HTMLParser):
    """The tags and the text of a page, strictly nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        if tag not in ("meta", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self.text += " "

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


def test_the_page_says_everything() -> None:
    text = " ".join(Page(full().to_html()).text.split())
    for word in ("added", "more evidence", "refined", "superseded", "quarantined", "archived", "retired"):
        assert word in text
    for expected in (
        "Alignment, revision 7",
        "2 of 3 errors fixed",
        "0 of 9 right verdicts broken",
        "exact McNemar p .031",
        "12 calls, 4.6 s",
        "34,567 tokens read (30,000 cached), 89 written",
        "2 records wait to be distilled",
        'judge.memory.accept("g9")',
        "breaks 1 record(s). Tried with 2 others: 0 fixed, 1 broken",
        "2 fixed, 1 unsteady, 0 broken, 7 unchanged, 1 without a verdict",
        "orders one verdict",
        "item-1",
        "r7, r8",
    ):
        assert expected in text


def test_the_page_is_inert_whatever_was_judged() -> None:
    for text in (full().to_html(), full()._repr_html_()):
        page = Page(text)
        assert not {"script", "img", "link", "iframe"} & set(page.tags)
        assert EVIL in page.text, "shown as text"
        assert "http" not in text, "it asks nobody for anything"


def test_a_notebook_gets_a_part_and_a_file_the_whole() -> None:
    report = full()
    assert report.to_html().startswith("<!doctype html>")
    assert report._repr_html_() in report.to_html()
    assert Page(report._repr_html_()).tags[0] == "div"


@pytest.mark.parametrize(
    ("proof", "shown", "line"),
    [
        (Verification(), "", ""),
        (Verification(mode="full", outcome="nothing"), "", ""),
        (Verification(mode="full", outcome="undone", note="9 of 9 failed"), "could not be done: 9 of 9 failed", "verification could not be done"),
        (Verification(mode="full", outcome="overridden", note="breaks 1 record(s)"), "would have refused: breaks 1 record(s)", "overridden"),
        (Verification(mode="full", outcome="accepted", unchanged=3, note="hardly anything to fix"), "Hardly anything to fix", "accepted"),
    ],
)
def test_every_outcome_is_told(proof: Verification, shown: str, line: str) -> None:
    report = AlignReport(revision=1, verification=proof)
    assert shown in Page(report.to_html()).text
    assert line in "\n".join(report.lines())
    assert ("judged again" in Page(report.to_html()).text) == bool(proof.unchanged)


def test_an_empty_report_is_a_page_as_well() -> None:
    page = Page(AlignReport(revision=0, cost_usd=None).to_html())
    assert "table" not in page.tags
    assert "unknown" in page.text


def test_data_and_lines() -> None:
    report = full()
    document = json.loads(json.dumps(report.to_dict()))
    assert document["verification"]["refused"][0]["broken"][0]["feedback_id"] == "b1"
    lines = "\n".join(report.lines())
    assert lines.startswith("revision 7: 3 new, 0 changed, 0 unchanged\ncost: 12 calls, 34,567 + 89 tokens, $0.0123, 4.6 s")
    assert "verified (fast), partly: fixed 2 of 3 error(s), broke 0 of 9 right verdict(s), 7 unchanged, 1 unsteady, 1 failed, p .031" in lines
    assert "  x kept as candidate g9: breaks 1 record(s), p .500: Held back." in lines
    assert "+ g9" not in lines, "what was refused is not added"


def test_small_chances_are_not_zero() -> None:
    assert (chance(1.0), chance(0.0312), chance(0.0002)) == ("p 1.000", "p .031", "p < .001")
