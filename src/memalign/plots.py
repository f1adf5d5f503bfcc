"""Plots for people who would rather look than read: the same chart as PNG, in a notebook, in a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memalign.agreement import Interval
from memalign.errors import MissingExtra
from memalign.reliability import Reliability


@dataclass(frozen=True, slots=True)
class Point:
    """Agreement after so many records of feedback."""

    records: int
    agreement: Interval


def require() -> None:
    """Before the work whose result is to be plotted: raises MissingExtra when it could not be."""
    _altair()
    _converter()


def learning_curve(points: Sequence[Point], *, title: str, subtitle: str) -> Any:
    """An Altair chart: balanced accuracy on unseen items against records of feedback, with its confidence interval. Raises MissingExtra."""
    altair = _altair()
    rows = [{"records": p.records, "agreement": p.agreement.value, "low": p.agreement.low, "high": p.agreement.high} for p in points]
    base = altair.Chart({"values": rows}).encode(
        x=altair.X(
            "records:Q",
            title="records of expert feedback",
            scale=altair.Scale(padding=24),
            axis=altair.Axis(values=[p.records for p in points], format="d"),
        )
    )
    scale = altair.Scale(domain=[0, 1])
    band = base.mark_area(opacity=0.15).encode(y=altair.Y("low:Q", scale=scale, title="balanced accuracy on unseen items"), y2="high:Q")
    line = base.mark_line(point=altair.OverlayMarkDef(size=70)).encode(y=altair.Y("agreement:Q", scale=scale))
    labels = base.mark_text(dy=-14, fontSize=13).encode(y="agreement:Q", text=altair.Text("agreement:Q", format=".2f"))
    chance = altair.Chart({"values": [{"chance": 0.5}]}).mark_rule(strokeDash=[4, 4], color="grey").encode(y="chance:Q")
    return (chance + band + line + labels).properties(width=480, height=300, title=altair.Title(title, subtitle=subtitle))


def reliability_diagram(before: Reliability, after: Reliability, *, title: str) -> Any:
    """Two Altair charts side by side: share right against confidence, and agreement against coverage, each of the model alone and as fitted.

    Points are as large as their bins are full; the bars are Wilson's 95 % intervals. Raises MissingExtra.
    """
    altair = _altair()
    kinds = {"model alone": before, "as fitted (left out)": after}
    bins = [
        {"judge": name, "confidence": part.confidence, "right": part.right.value, "low": part.right.low, "high": part.right.high, "n": part.n}
        for name, found in kinds.items()
        for part in found.bins
    ]
    curve = [{"judge": name, "coverage": p.coverage, "agreement": p.agreement.value} for name, found in kinds.items() for p in found.curve]
    unit = altair.Scale(domain=[0, 1])
    colour = altair.Color("judge:N", title=None, scale=altair.Scale(domain=list(kinds), range=["#b0b0b0", "#1f77b4"]))
    base = altair.Chart({"values": bins}).encode(x=altair.X("confidence:Q", scale=unit, title="confidence"), color=colour)
    bars = base.mark_rule(opacity=0.5).encode(y=altair.Y("low:Q", scale=unit, title="share right"), y2="high:Q")
    points = base.mark_point(filled=True, opacity=0.9).encode(
        y=altair.Y("right:Q", scale=unit), size=altair.Size("n:Q", title="verdicts", scale=altair.Scale(range=[30, 300]))
    )
    ideal = altair.Chart({"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]}).mark_line(strokeDash=[4, 4], color="grey").encode(x="x:Q", y="y:Q")
    errors = ", ".join(f"{name} {found.ece:.2f}" for name, found in kinds.items())
    left = (ideal + bars + points).properties(
        width=300, height=300, title=altair.Title("Reliability", subtitle=f"calibration error: {errors}; n = {after.n}")
    )
    right = (
        altair.Chart({"values": curve})
        .mark_line(interpolate="step-before")
        .encode(
            x=altair.X("coverage:Q", scale=unit, title="share of items that keep their verdict"),
            y=altair.Y("agreement:Q", scale=altair.Scale(zero=False), title="accuracy on them"),
            color=colour,
        )
        .properties(width=300, height=300, title="What abstaining buys")
    )
    return altair.hconcat(left, right, title=title)


def save_png(chart: Any, path: Path) -> None:
    """Render a chart to a PNG file at twice the screen's resolution; no browser, no network. Raises MissingExtra."""
    converter = _converter()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(converter.vegalite_to_png(chart.to_dict(), scale=2))


def _altair() -> Any:
    try:
        import altair
    except ImportError as error:
        raise MissingExtra("altair", "plots") from error
    return altair


def _converter() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise MissingExtra("vl-convert-python", "plots") from error
    return vl_convert
