"""Registering aligned judges with MLflow, and loading them by name with their memory."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.genai.scorers import Scorer, get_scorer, list_scorers
from mlflow.genai.scorers.base import SerializedScorer

from memalign.integrations.mlflow.faults import gone, refused
from memalign.integrations.mlflow.judge import AlignedJudge
from memalign.integrations.mlflow.places import Means, Place, Reader

_KEY = "memalign"
"""Under it, in MLflow's own form of a judge with memory, stands where ours lies."""


def load_judge(name: str, *, experiment_id: str | None = None, version: int | None = None, memory: str | Path | None = None) -> AlignedJudge:
    """A registered judge, with its memory as it was when it was registered; ``memory`` says where that lies now, if it moved.

    Without ``experiment_id`` it is looked for in the active experiment. Raises MlflowException: no such judge, one without memalign's memory, or
    a memory that is gone.
    """
    try:
        found = get_scorer(name=name, experiment_id=experiment_id, version=version)
    except MlflowException as error:
        raise _nearly(name, experiment_id) or error from None
    if not isinstance(found, AlignedJudge):
        raise refused(
            f"{name!r} is a {type(found).__name__} without a memory of memalign's; MLflow's get_scorer loads it, and "
            "memalign.integrations.mlflow.import_judge takes over MLflow's own judges with memory"
        )
    judge = found if memory is None else found.kept_in(memory)
    assert judge.memory  # opens it: better now than at the first row
    return judge


def _nearly(name: str, experiment_id: str | None) -> MlflowException | None:
    """What to say when a judge of this name is registered, written otherwise."""
    try:
        names = [scorer.name for scorer in list_scorers(experiment_id=experiment_id)]
    except MlflowException:
        return None
    other = next((one for one in names if one.strip().casefold() == name.strip().casefold()), None)
    return None if other in (None, name) else gone(f"no judge {name!r} is registered, but {other!r} is: names are told apart by case and spaces")


def serialised(judge: AlignedJudge) -> dict[str, Any]:
    """A judge in MLflow's form of a judge with memory, so that an MLflow without memalign reads guidelines and traces; and our own part."""
    means = judge._reader.means
    local = means.embedding_model is None or means.embedding_model.startswith("local")
    data = {
        "base_judge": judge.base.model_dump(),
        "episodic_trace_ids": judge._reader.trace_ids,
        "semantic_memory": [{"guideline_text": text, "source_trace_ids": sources or None} for text, sources in judge._reader.guidelines],
        "reflection_lm": means.reflection_lm,
        "retrieval_k": means.retrieval_k or 5,
        "embedding_model": None if local else means.embedding_model,
        "embedding_dim": means.embedding_dim or 512,
        _KEY: {"place": judge.place.to_dict(), "means": asdict(means)},
    }
    return asdict(
        SerializedScorer(
            name=judge.name,
            description=judge.description,
            aggregations=judge.aggregations,
            is_session_level_scorer=judge.is_session_level_scorer,
            mlflow_version=mlflow.__version__,
            memory_augmented_judge_data=data,
        )
    )


def deserialised(form: Mapping[str, Any]) -> AlignedJudge:
    """The judge of a registered form; its memory is opened at first use."""
    data = form["memory_augmented_judge_data"]
    base = Scorer.model_validate(data["base_judge"])
    return AlignedJudge(Reader(base, Place(**data[_KEY]["place"]), Means(**data[_KEY]["means"])), name=form["name"])


def teach_mlflow() -> None:
    """Let ``Scorer.model_validate``, by which MLflow loads what is registered, know our judges; all others go their old way."""
    theirs = Scorer.model_validate.__func__
    if hasattr(theirs, "knows_memalign"):
        return

    @functools.wraps(theirs)
    def model_validate(cls: type[Scorer], obj: Any) -> Scorer:
        form = asdict(obj) if isinstance(obj, SerializedScorer) else json.loads(obj) if isinstance(obj, str) else obj
        ours = isinstance(form, dict) and _KEY in (form.get("memory_augmented_judge_data") or {})
        return deserialised(form) if ours else theirs(cls, obj)

    model_validate.knows_memalign = True  # type: ignore[attr-defined]
    Scorer.model_validate = classmethod(model_validate)
