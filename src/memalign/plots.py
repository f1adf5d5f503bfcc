"""Plots for people who would rather look than read: the same chart as PNG, in a notebook, in a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memalign.agreement import Interval
from memalign.errors import MissingExtra


@dataclass(frozen=True, slots=True)
class Point:
    """Agreement after so many records of feedback."""

    records: int
    agreement: Interval


def learning_curve(points: Sequence[Point], *, title: str, subtitle: str) -> Any:
    """An Altair chart: balanced accuracy on unseen items against records of feedback, with its confidence interval. Raises MissingExtra."""
    try:
        import altair
    except ImportError as error:
        raise MissingExtra("altair", "plots") from error
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


def save_png(chart: Any, path: Path) -> None:
    """Render a chart to a PNG file at twice the screen's resolution; no browser, no network. Raises MissingExtra."""
    try:
        import vl_convert
    except ImportError as error:
        raise MissingExtra("vl-convert-python", "plots") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(vl_convert.vegalite_to_png(chart.to_dict(), scale=2))
