"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Database = Annotated[str, typer.Option("--db", envvar="MEMALIGN_DB", help="The memory: a file, or postgresql://...", show_default=False)]
JudgeName = Annotated[
    str, typer.Option("--judge", envvar="MEMALIGN_JUDGE", help="The judge's name; may be left out when the memory holds one judge.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Actor = Annotated[str, typer.Option("--actor", help="Who makes this change, for the history.")]
AbstainBelow = Annotated[
    float | None, typer.Option("--abstain-below", help="Leave items to the experts on which the judge is less sure than this.", min=0.0, max=1.0)
]
Votes = Annotated[int | None, typer.Option("--votes", help="Count so many replies an item, each shown other cases.", min=1)]
ScaleSpec = Annotated[str | None, typer.Option(help="boolean, score:1-5, categories:good,bad, ordered:poor,fair,good, pairwise, pairwise:no-tie")]
ExpectedScore = Annotated[
    bool | None, typer.Option("--expected-score/--likeliest-score", help="A score is the one nearest to the mean of its probabilities.")
]
Verify = Annotated[
    str,
    typer.Option(
        metavar="off|fast|full",
        help="Whether guidelines must prove themselves on records judged again: fast takes 24, full all. By default fast for openai/... models, "
        "else off.",
    ),
]
Retrieve = Annotated[
    list[str] | None,
    typer.Option(
        "--retrieve",
        metavar="NAME=VALUE",
        help="Which cases a judgement is shown; may be given several times: k, floor, words (on: by their words too), verdict_margin, error_margin, "
        "alike, and the filters annotators, sources, since, until. An empty value lifts a filter.",
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        metavar="ANNOTATOR=NUMBER",
        help="How much an annotator counts in votes of the cases and in majorities, else 1; may be given several times.",
    ),
]
