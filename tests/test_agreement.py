"""Agreement metrics against scikit-learn and scipy, their intervals, and what is undefined."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from memalign.agreement import METRICS, Interval, measure, paired, short
from memalign.baseline import length_baseline
from memalign.errors import BadRecord, ConfigurationError
from memalign.open_scale import OpenScale
from memalign.records import Item
from memalign.scale import Scale, Value

BOOLEAN, SCORE = Scale.boolean(), Scale.score(1, 5)
SCALES = [
    BOOLEAN,
    SCORE,
    Scale.score(0, 100),
    Scale.pairwise(),
    Scale.categories("good", "fair", "poor"),
    Scale.categories("poor", "fair", "good", ordered=True),
]


def judged(scale: Scale, n: int, seed: int, right: float = 0.6) -> list[tuple[Value, Value]]:
    rng = random.Random(seed)
    truth = [rng.choice(scale.values) for _ in range(n)]
    return [(value, value if rng.random() < right else rng.choice(scale.values)) for value in truth]


@pytest.mark.filterwarnings("ignore:The number of unique classes")
@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.spec)
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_those_of_scikit_learn_and_scipy(scale: Scale, seed: int) -> None:
    pairs = judged(scale, 60, seed)
    found = measure(scale, pairs, resamples=20)
    expert, judge = ([scale.values.index(value) for value in side] for side in zip(*pairs, strict=True))
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(expert, judge),
        "balanced_accuracy": sklearn.metrics.recall_score(expert, judge, average="macro", labels=sorted(set(expert)), zero_division=0),
        "kappa": sklearn.metrics.cohen_kappa_score(expert, judge, labels=range(len(scale.labels)), weights="quadratic" if scale.ordinal else None),
    }
    if scale.kind == "boolean":
        expected["tpr"] = sklearn.metrics.recall_score(expert, judge, pos_label=0)
        expected["tnr"] = sklearn.metrics.recall_score(expert, judge, pos_label=1)
    if scale.kind == "score":
        covariance = np.cov(expert, judge, bias=True)
        expected["ccc"] = 2 * covariance[0, 1] / (covariance.trace() + (np.mean(expert) - np.mean(judge)) ** 2)
        expected["mae"] = sklearn.metrics.mean_absolute_error(expert, judge)
        expected["rank_correlation"] = scipy.stats.spearmanr(expert, judge).statistic
    assert {name: metric.value for name, metric in found.metrics.items()} == pytest.approx(expected)
    matrix = sklearn.metrics.confusion_matrix(expert, judge)
    assert [list(row.values()) for row in found.confusion.values()] == matrix.tolist()


@pytest.mark.parametrize("scale", SCALES, ids=lambda scale: scale.spec)
def test_intervals_are_the_percentiles_of_plain_resampling(scale: Scale) -> None:
    pairs = judged(scale, 40, 1)
    found = measure(scale, pairs, resamples=4000, seed=3)
    rng = random.Random(5)
    drawn = [measure(scale, rng.choices(pairs, k=len(pairs)), resamples=1).metrics for _ in range(600)]
    for name, metric in found.metrics.items():
        low, high = np.quantile([one[name].value for one in drawn if name in one], (0.025, 0.975))
        width = high - low
        assert metric.low == pytest.approx(low, abs=0.15 * width)
        assert metric.high == pytest.approx(high, abs=0.15 * width)
        assert metric.low <= metric.value <= metric.high


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """True accuracy .7 + .3 / 2 = .85; true kappa .7."""
    covered = np.zeros(2)
    for seed in range(200):
        found = measure(BOOLEAN, judged(BOOLEAN, 80, seed, right=0.7), resamples=300, seed=seed).metrics
        covered += [found["accuracy"].low <= 0.85 <= found["accuracy"].high, found["kappa"].low <= 0.7 <= found["kappa"].high]
    assert (covered / 200 > 0.89).all()
    assert (covered / 200 < 0.99).all()


def test_same_seed_same_interval() -> None:
    pairs = judged(SCORE, 30, 0)
    assert measure(SCORE, pairs) == measure(SCORE, pairs)
    assert measure(SCORE, pairs) != measure(SCORE, pairs, seed=1)
    wide, narrow = (measure(SCORE, pairs, confidence=level).metrics["accuracy"] for level in (0.99, 0.5))
    assert wide.low < narrow.low <= narrow.high < wide.high


def test_groups_widen_the_interval() -> None:
    pairs = [pair for pair in judged(BOOLEAN, 20, 2) for _ in range(10)]
    alone = measure(BOOLEAN, pairs).metrics["accuracy"]
    grouped = measure(BOOLEAN, pairs, groups=[f"question {i // 10}" for i in range(200)]).metrics["accuracy"]
    assert grouped.value == alone.value
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_many_items_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = judged(SCORE, 50, 0)
    whole = measure(SCORE, pairs)
    monkeypatch.setattr("memalign.agreement._BLOCK_CELLS", 700)
    assert measure(SCORE, pairs).metrics["accuracy"].value == whole.metrics["accuracy"].value
    assert measure(SCORE, pairs).metrics["accuracy"].low == pytest.approx(whole.metrics["accuracy"].low, abs=0.05)


def test_failures_are_counted_apart() -> None:
    found = measure(BOOLEAN, [(True, True), (False, False), (True, False)], failures=2)
    assert (found.n, found.failures) == (3, 2)
    assert found.accuracy == Interval(pytest.approx(2 / 3), 0.0, 1.0)
    assert "failures 2 of 5, not counted above" in found.lines()


def test_nothing_to_measure() -> None:
    found = measure(SCORE, [], failures=4)
    assert found.metrics == {}
    assert found.lines() == ["n = 0", "failures 4 of 4, not counted above", "note: nothing was measured: no pairs"]


def test_one_class_only() -> None:
    found = measure(BOOLEAN, [(True, True), (True, False)] * 4)
    assert set(found.metrics) == {"accuracy", "tpr"}
    assert found.kappa is None
    assert found.notes == (
        "balanced accuracy is undefined: the experts gave one value only",
        "kappa is undefined: the experts gave one value only",
        "tnr is undefined: the experts never said no",
    )


def test_constant_scores() -> None:
    by_expert = measure(SCORE, [(3, 3), (3, 4)] * 4)
    assert set(by_expert.metrics) == {"accuracy", "mae"}
    by_judge = measure(SCORE, [(3, 3), (2, 3)] * 4)
    assert set(by_judge.metrics) == {"accuracy", "balanced_accuracy", "kappa", "ccc", "mae"}
    assert by_judge.metrics["kappa"].value == pytest.approx(0)
    assert by_judge.notes == ("rank correlation is undefined: the experts' or the judge's scores are constant",)


def test_perfect_agreement_says_what_the_interval_cannot() -> None:
    found = measure(BOOLEAN, [(True, True), (False, False)] * 5)
    assert found.metrics["kappa"] == Interval(1.0, 1.0, 1.0)
    exact = scipy.stats.binomtest(10, 10).proportion_ci().low
    assert found.notes == (f"the interval of a perfect split has no width; exactly, the accuracy is at least {short(exact)}",)
    assert "at most" in measure(BOOLEAN, [(True, False)] * 3 + [(False, True)]).notes[-1]
    grouped = measure(BOOLEAN, [(True, True)] * 20 + [(False, False)] * 20, groups=[f"question {number // 10}" for number in range(40)])
    assert grouped.notes[-1].endswith(f"at least {short(0.025 ** (1 / 4))}"), "four groups tell as much as four items"
    assert "only one item or group" in measure(BOOLEAN, [(True, True), (False, True)], groups=["q", "q"]).notes[-1]


@given(st.sampled_from(SCALES), st.data())
def test_whatever_the_pairs_the_result_is_plain_and_free_of_nan(scale: Scale, data: st.DataObject) -> None:
    value = st.sampled_from(scale.values)
    found = measure(scale, data.draw(st.lists(st.tuples(value, value), max_size=12)), resamples=15)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["n"] == found.n
    for name in METRICS:
        metric = getattr(found, name)
        assert metric is None or (metric.low <= metric.high and type(metric.value) is float)
    assert all(isinstance(line, str) and "nan" not in line for line in found.lines())


def test_confusion_of_a_long_scale_shows_what_occurs() -> None:
    found = measure(Scale.score(0, 100), [(10, 20), (10, 10)], resamples=5)
    assert found.confusion == {"10": {"10": 1, "20": 1}, "20": {"10": 0, "20": 0}}
    assert measure(BOOLEAN, [(True, True)]).confusion == {"yes": {"yes": 1, "no": 0}, "no": {"yes": 0, "no": 0}}


def test_confusion_of_very_many_verdicts_is_as_long_as_they_are_and_no_square() -> None:
    pairs = [(f"expert {n}", f"judge {n % 400}") for n in range(800)]
    found = measure(OpenScale.of({"type": "string"}), pairs, resamples=5)
    assert sum(map(len, found.confusion.values())) == 800
    assert found.confusion["expert 401"] == {"judge 1": 1}
    assert found.accuracy is not None
    assert found.accuracy.value == 0


def test_values_are_read_strictly() -> None:
    assert measure(SCORE, [("4", 4.0), (2, "2")]).metrics["accuracy"].value == 1
    with pytest.raises(BadRecord, match="whole numbers"):
        measure(SCORE, [(4, 6)])
    with pytest.raises(BadRecord):
        measure(BOOLEAN, [(True, None)])


@pytest.mark.parametrize("settings", [{"resamples": 0}, {"confidence": 1}, {"confidence": 0}, {"failures": -1}, {"groups": ["a", "b"]}])
def test_impossible_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        measure(BOOLEAN, [(True, True)], **settings)  # type: ignore[arg-type]


def test_lines_are_short() -> None:
    found = measure(BOOLEAN, judged(BOOLEAN, 24, 0))
    assert found.lines()[0] == f"accuracy {found.accuracy}, n = 24"
    assert str(Interval(0.75, 0.53, 0.9)) == ".75 (.53-.90)"
    assert str(Interval(0.1, -0.12, 1.0)) == ".10 (-.12 to 1.00)"
    assert [short(number) for number in (0.0, -0.001, 1.25, -1.0, 0.999)] == [".00", ".00", "1.25", "-1.00", "1.00"]


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (1, 0), (8, 1), (5, 5), (3, 9), (600, 500), (3000, 0)])
def test_mcnemar_is_exact(fixed: int, broken: int) -> None:
    expert = [True] * (fixed + broken + 3)
    before = [False] * fixed + [True] * broken + [True, False, None]
    after = [True] * fixed + [False] * broken + [True, False, True]
    found = paired(BOOLEAN, expert, before, after)
    expected = scipy.stats.binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    assert (found.fixed, found.broken, found.skipped, found.n) == (fixed, broken, 1, fixed + broken + 2)
    assert found.p_value == pytest.approx(expected)


def test_paired_lines_and_lengths() -> None:
    assert paired(BOOLEAN, [True] * 9, [False] * 8 + [True], [True] * 8 + [False]).lines() == ["fixed 8, broken 1, p .039 (exact McNemar), n = 9"]
    assert paired(BOOLEAN, [], [], []).p_value == 1
    with pytest.raises(ConfigurationError):
        paired(BOOLEAN, [True], [True], [])


@pytest.mark.parametrize("seed", range(5))
def test_length_baseline_is_the_area_under_the_curve(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randrange(20) for _ in range(50)]
    values = [rng.random() < 0.3 + length / 40 for length in lengths]
    found = length_baseline([Item(outputs="x" * length) for length in lengths], values)
    assert found == pytest.approx(sklearn.metrics.roc_auc_score(values, lengths))


def test_length_baseline_of_other_scales() -> None:
    texts = [Item(outputs="x" * length) for length in (1, 2, 3, 3)]
    assert length_baseline(texts, [1, 2, 3, 5]) == pytest.approx(5.5 / 6)
    assert length_baseline(texts, [True] * 4) is None
    assert length_baseline([], []) is None
    assert length_baseline(texts, ["good", "poor", "good", "fair"]) is None
    two = [Item(outputs={"a": "long text", "b": "x"}), Item(outputs={"a": "x", "b": "long text"}), Item(outputs={"a": "", "b": ""})]
    assert length_baseline(two, ["a", "b", "tie"]) == 1
    assert length_baseline([Item(outputs={"k": 1}), Item(outputs=None)], [True, False]) == 1
    with pytest.raises(ConfigurationError):
        length_baseline(texts, [True])


def test_it_is_fast() -> None:
    import time

    pairs = judged(SCORE, 150, 0)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        measure(SCORE, pairs)
        best = min(best, time.perf_counter() - start)
    assert best < 0.3
