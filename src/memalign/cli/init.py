"""``memalign init``: register a judge in a memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memalign.cli.options import AbstainBelow, AsJson, Database, ExpectedScore, Retrieve, ScaleSpec, Votes, Weights
from memalign.errors import ConfigurationError
from memalign.stores import shown

if TYPE_CHECKING:
    from memalign.judge import Judge

_DERIVED = ("reflection_model", "k", "explain", "both_orders")
"""Settings whose default depends on the model."""


def init(
    db: Database,
    name: Annotated[str, typer.Option("--judge", envvar="MEMALIGN_JUDGE", help="The judge's name.", show_default=False)],
    instructions: Annotated[str | None, typer.Option(help="What the judge decides, in plain language; @FILE reads it from a file.")] = None,
    scale: ScaleSpec = None,
    model: Annotated[str | None, typer.Option(help="provider/model, e.g. openai/gpt-4.1-mini or local/qwen2.5-coder-1.5b")] = None,
    reflection_model: Annotated[str | None, typer.Option(help="The model that distils guidelines; the same unless given.")] = None,
    embedder: Annotated[str | None, typer.Option(help="local/minilm (the default) or openai/<model>")] = None,
    k: Annotated[int | None, typer.Option(help="How many similar cases a judgement is shown.")] = None,
    retrieve: Retrieve = None,
    exemplars: Annotated[int | None, typer.Option(help="How many cases stand before every judgement.")] = None,
    explain: Annotated[bool | None, typer.Option("--explain/--no-explain", help="Whether a rationale is written before the verdict.")] = None,
    abstain_below: AbstainBelow = None,
    votes: Votes = None,
    both_orders: Annotated[bool | None, typer.Option("--both-orders/--one-order", help="Pairwise: judge each pair in both orders.")] = None,
    expected_score: ExpectedScore = None,
    weight: Weights = None,
    temperature: Annotated[float | None, typer.Option(help="Of the judge's replies, 0 unless given.", min=0.0)] = None,
    max_age_days: Annotated[float | None, typer.Option(help="Purge records that are older, after each align; 0 lifts the limit.", min=0.0)] = None,
    max_records: Annotated[int | None, typer.Option(help="Keep so many records, the newest; 0 lifts the limit.", min=0)] = None,
    json: AsJson = False,
) -> None:
    """Register a judge or change its settings.

    Of a judge that exists, what is not given stays as it is; its scale cannot be changed.
    """
    from memalign.cli.printing import emit

    given: dict[str, Any] = {
        "instructions": _text(instructions),
        "model": model,
        "reflection_model": reflection_model,
        "embedder": embedder,
        "k": k,
        "exemplars": exemplars,
        "explain": explain,
        "abstain_below": abstain_below,
        "votes": votes,
        "both_orders": both_orders,
        "expected_score": expected_score,
        "temperature": temperature,
    }
    before = _existing(db, name)
    given = {key: value for key, value in given.items() if value is not None}
    given |= _retrieval(before, retrieve or []) | _weights(before, weight or []) | _limits(before, max_age_days, max_records)
    judge = _new(db, name, scale, given) if before is None else _changed(db, before, scale, given)
    with closing(judge):
        _ = judge.memory.judge_id  # registers it
        fitted = before is not None and votes is not None and judge.memory.view().decision.fitted
    old, new = before.settings if before else {}, judge.settings
    changed = {key: (old.get(key), new.get(key)) for key in new | old if new.get(key) != old.get(key)} if before else {}
    if json:
        emit({"judge": name, "registered": before is None, "changed": changed, "settings": new})
    elif before is None:
        _welcome(judge, db)
    else:
        _tell(name, db, changed, fitted=fitted)


def _welcome(judge: Judge, db: str) -> None:
    from memalign.cli.printing import note, say
    from memalign.embedders.minilm import is_installed

    say(f"registered judge {judge.name!r} in {shown(db)}: {judge.scale.spec}, {judge.settings['model']}")
    if judge.settings["embedder"] == "local/minilm" and not is_installed():
        note("before it can learn: pip install 'memalign[minilm]', or repeat this with --embedder openai/text-embedding-3-small")
    say(f"to teach it, run: memalign align FEEDBACK.jsonl --db {shown(db)}")


def _tell(name: str, db: str, changes: Mapping[str, tuple[Any, Any]], *, fitted: bool) -> None:
    from memalign.cli.printing import say

    if not changes:
        say(f"judge {name!r} in {shown(db)}: nothing changed")
    for key, (old, new) in changes.items():
        say(f"judge {name!r}: {key} changed from {old!r} to {new!r}")
    if "embedder" in changes:
        say("what memory holds is embedded anew behind judging, the former embedder serves meanwhile; to do it now: memalign memory index")
        say("weights that memalign calibrate fitted rest on the former embedder's vectors; fit them anew once it is done")
    if "votes" in changes and fitted:
        say("what memalign calibrate fitted counts for the number of votes that it was fitted on; for another one, fit it anew")


def _retrieval(before: Judge | None, given: list[str]) -> dict[str, Any]:
    """What ``--retrieve`` changes."""
    from memalign.cli.retrieving import changed, parsed
    from memalign.retrieval import Retrieval

    own, changes = parsed(given)
    return own | ({"retrieval": changed(Retrieval() if before is None else before.retrieval, changes)} if changes else {})


def _weights(before: Judge | None, given: list[str]) -> dict[str, Any]:
    """What ``--weight`` changes; the last equals sign divides, since names may hold some."""
    weights = {} if before is None else dict(before.weights)
    for text in given:
        name, equals, value = text.rpartition("=")
        if not equals:
            raise ConfigurationError(f"--weight {text!r} is not ANNOTATOR=NUMBER, e.g. --weight ann=2")
        try:
            weights |= {name: float(value) if value else 1.0}
        except ValueError:
            raise ConfigurationError(f"--weight {name} takes a number from 0, not {value!r}") from None
    return {"weights": {name: weight for name, weight in weights.items() if weight != 1}} if given else {}


def _limits(before: Judge | None, max_age_days: float | None, max_records: int | None) -> dict[str, Any]:
    """What the limits of retention become; 0 lifts one."""
    from memalign.memory.retention import Retention

    given = {name: value or None for name, value in (("max_age_days", max_age_days), ("max_records", max_records)) if value is not None}
    limits = (before.retention.to_dict() if before is not None and before.retention is not None else {}) | given
    return {"retention": Retention(**limits) if any(limits.values()) else None} if given else {}


def _existing(db: str, name: str) -> Judge | None:
    from memalign.judge import Judge
    from memalign.memory import judge_names
    from memalign.stores import open_store

    with closing(open_store(db)) as store:
        known = store.exists() and name in judge_names(store)
    return Judge.load(db, name) if known else None


def _new(db: str, name: str, scale: str | None, given: dict[str, Any]) -> Judge:
    from memalign.judge import Judge
    from memalign.scale import Scale

    missing = [
        f"--{key}" for key, value in {"instructions": given.get("instructions"), "scale": scale, "model": given.get("model")}.items() if not value
    ]
    if missing or scale is None:
        raise ConfigurationError(f"judge {name!r} is new in {shown(db)}: give {', '.join(missing)}; see: memalign init --help")
    return Judge(name=name, scale=Scale.parse_spec(scale), memory=db, **given)


def _changed(db: str, before: Judge, scale: str | None, given: dict[str, Any]) -> Judge:
    from memalign.judge import Judge
    from memalign.scale import Scale

    if scale is not None and Scale.parse_spec(scale) != before.scale:
        raise ConfigurationError(
            f"judge {before.name!r} has the scale {before.scale.spec}, which cannot be changed to {scale}: verdicts of two scales cannot be mixed; "
            "give the new judge another name"
        )
    return Judge(name=before.name, scale=before.scale, memory=db, **(_kept(before) | given))


def _kept(before: Judge) -> dict[str, Any]:
    """The stored settings, without those that merely followed from the model: they shall follow the new one."""
    from memalign.judge import Judge

    stored = before.settings | ({} if before.retention is None else {"retention": before.retention})
    usual = Judge(before.name, before.instructions, before.scale, before.model).settings
    return {key: value for key, value in stored.items() if key != "scale" and not (key in _DERIVED and value == usual[key])}


def _text(instructions: str | None) -> str | None:
    if instructions is None or not instructions.startswith("@"):
        return instructions
    path = Path(instructions[1:])
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the instructions from {path}: {error}") from error
