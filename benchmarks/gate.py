"""False alarms and missed breaks of the gate, when verdicts flip by themselves: ``python -m benchmarks.gate [--runs N]``.

50 records of which the judge gets 15 wrong; every verdict is flipped with the same probability, independently. A false alarm: a change that does
nothing is refused because it "breaks" something. A missed break: a change that turns right verdicts wrong is not found out. Compared are one
verdict on each side (naive), three under the change against one without it, and three against three, which is what the gate does, by its own code.
Prints a table beside the arithmetic; writes ``benchmarks/results/gate.json`` and ``docs/gate.png``.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import ROOT
from memalign.alignment.gate import effect
from memalign.plots import save_png

RECORDS, WRONG = 50, 15
RATES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16)
SHOWN = (0.0, 0.05, 0.13)
BREAKS = (1, 2, 4)
METHODS = {"naive": (1, 1), "three of three": (1, 3), "three against three": (3, 3)}
"""How many verdicts are taken without and with the change."""


@dataclass(frozen=True, slots=True)
class Found:
    """How often a method alarmed in ``runs`` runs."""

    method: str
    flips: float
    broken: int
    """Records that the change really breaks."""
    alarms: int
    runs: int

    @property
    def share(self) -> float:
        """Of runs with an alarm; with nothing broken these are false alarms, else the rest are missed breaks."""
        return self.alarms / self.runs


def alarmed(method: str, flips: float, broken: int, luck: random.Random, *, certain: bool = False) -> bool:
    """One run: whether anything seems broken. ``certain``: verdicts without the change never flip and are never wrong, as the arithmetic has it."""
    without, under = METHODS[method]
    for record in range(RECORDS):
        wrong = record >= RECORDS - WRONG and not certain
        before = [float(wrong ^ (not certain and luck.random() < flips)) for _ in range(without)]
        after = [float((wrong or record < broken) ^ (luck.random() < flips)) for _ in range(under)]
        if effect(before, after, 1.0) == "broken":
            return True
    return False


def simulated(runs: int, seed: int = 0) -> list[Found]:
    """All methods at all rates, with nothing broken and with something."""
    return [
        Found(
            method, flips, broken, sum(alarmed(method, flips, broken, random.Random(f"{seed} {broken} {flips} {run}")) for run in range(runs)), runs
        )
        for method in METHODS
        for flips in RATES
        for broken in (0, *BREAKS)
    ]


def arithmetic(flips: float, verdicts: int) -> float:
    """The false alarms among 50 records that are right for certain: one minus the chance that none fails every time."""
    return 1.0 - (1.0 - flips**verdicts) ** RECORDS


def interval(alarms: int, runs: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, p = 1.96, alarms / runs
    middle, half = p + z * z / (2 * runs), z * math.sqrt(p * (1 - p) / runs + z * z / (4 * runs * runs))
    return (middle - half) / (1 + z * z / runs), (middle + half) / (1 + z * z / runs)


def chart(found: Sequence[Found]) -> Any:
    """Two panels: false alarms, and missed breaks by how many records are broken."""
    import altair

    rows = [
        {
            "method": one.method,
            "flips": one.flips,
            "share": one.share if not one.broken else 1.0 - one.share,
            "panel": f"missed: {one.broken} of 35 broken" if one.broken else "false alarms",
        }
        for one in found
    ]
    colours = altair.Scale(domain=list(METHODS), range=["#c0392b", "#b7791f", "#1a7f4b"])
    base = altair.Chart().encode(
        x=altair.X("flips:Q", title="verdicts that flip by themselves", axis=altair.Axis(format="%", values=[0, 0.05, 0.1, 0.15])),
        y=altair.Y("share:Q", title="share of runs", scale=altair.Scale(domain=[0, 1]), axis=altair.Axis(format="%")),
        color=altair.Color("method:N", scale=colours, title=None, legend=altair.Legend(orient="bottom")),
    )
    panel = base.mark_line(point=altair.OverlayMarkDef(size=45)).properties(width=230, height=220)
    order = ["false alarms", *(f"missed: {broken} of 35 broken" for broken in BREAKS)]
    title = altair.Title(
        "When is a change of guidelines refused?", subtitle=f"{RECORDS} records, {WRONG} judged wrong without it; {found[0].runs} runs a point"
    )
    return panel.facet(altair.Facet("panel:N", sort=order, title=None), columns=2, data=altair.Data(values=rows)).properties(title=title)


def table(found: Sequence[Found], runs: int) -> Table:
    """For a terminal: the rates of the arithmetic, which supposes that the verdicts without the change are right for certain."""
    made = Table("flips", "method", "false alarms", "if right for certain", "arithmetic", *(f"missed, {broken} broken" for broken in BREAKS))
    at = {(one.method, one.flips, one.broken): one for one in found}
    for flips in SHOWN:
        for method, (_, verdicts) in METHODS.items():
            alarms = at[method, flips, 0]
            low, high = interval(alarms.alarms, alarms.runs)
            missed = (f"{1.0 - at[method, flips, broken].share:.1%}" for broken in BREAKS)
            certain = sum(alarmed(method, flips, 0, random.Random(f"certain {flips} {run}"), certain=True) for run in range(runs)) / runs
            shown = f"{alarms.share:.1%} ({low:.1%}-{high:.1%})"
            made.add_row(f"{flips:.0%}", method, shown, f"{certain:.1%}", f"{arithmetic(flips, verdicts):.1%}", *missed)
    return made


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    options = parser.parse_args()
    found = simulated(options.runs)
    Console(width=140).print(table(found, options.runs))
    results = ROOT / "benchmarks" / "results" / "gate.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps([asdict(one) | {"share": one.share} for one in found], indent=1) + "\n")
    save_png(chart(found), ROOT / "docs" / "gate.png")


if __name__ == "__main__":
    main()
