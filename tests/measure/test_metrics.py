"""Scores by hand, against scikit-learn and scipy, and their intervals and floors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashsvd.errors import InputError
from flashsvd.measure.divergence import Divergence
from flashsvd.measure.scores import (
    accuracy_metric,
    agreement_metric,
    f1_metric,
    kl_metric,
    macro_f1_metric,
    matthews_metric,
    pearson_metric,
    spearman_metric,
    task_metrics,
)
from flashsvd.results import Metric
from flashsvd.tasks.base import Examples, Task

CLASS_METRICS = (accuracy_metric, f1_metric, macro_f1_metric, matthews_metric)
PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)
NUMBERS = st.lists(
    st.tuples(st.integers(-5, 5).map(float), st.floats(-1e3, 1e3, allow_subnormal=False)),
    min_size=2,
    max_size=40,
)


def task(kind: str, metric: str, classes: tuple[str, ...] = (), positive: int = 1) -> Task:
    return Task("t", "t", "t", kind, metric, classes, lambda split: Examples((), None, None), positive)  # type: ignore[arg-type]


def test_by_hand() -> None:
    """10 examples: 3 true positives, 1 false positive, 2 false negatives, 4 true negatives."""
    labels = [1] * 5 + [0] * 5
    guesses = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    found = {metric.name: metric for metric in (measure(guesses, labels) for measure in CLASS_METRICS)}
    assert found["accuracy"].value == 0.7 and found["accuracy"].floor == 0.5
    assert found["f1"].value == pytest.approx(6 / 9)
    assert f1_metric(guesses, labels, positive=0).value == pytest.approx(8 / 11)
    assert found["macro_f1"].value == pytest.approx((6 / 9 + 8 / 11) / 2)
    assert found["matthews"].value == pytest.approx((3 * 4 - 1 * 2) / (4 * 5 * 5 * 6) ** 0.5)


def test_floors_are_the_score_of_the_commonest_class() -> None:
    labels = [1] * 7 + [0] * 3
    for measure in CLASS_METRICS:
        metric = measure([0, 1] * 5, labels)
        assert metric.floor == pytest.approx(measure([1] * 10, labels).value)
    assert f1_metric([0] * 10, labels).floor == pytest.approx(14 / 17)
    assert f1_metric([0] * 10, labels, positive=0).floor == 0
    assert matthews_metric([0, 1] * 5, labels).floor == 0
    assert pearson_metric([1.0, 2.0], [1.0, 3.0]).floor == 0


@pytest.mark.filterwarnings("ignore:A single label")
@settings(max_examples=50)
@given(PAIRS)
def test_classes_as_scikit_learn_has_them(pairs: list[tuple[int, int]]) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    guesses, labels = map(list, zip(*pairs, strict=True))
    assert accuracy_metric(guesses, labels).value == pytest.approx(sklearn.accuracy_score(labels, guesses))
    assert macro_f1_metric(guesses, labels, draws=2).value == pytest.approx(
        sklearn.f1_score(labels, guesses, average="macro", zero_division=0)
    )
    assert f1_metric(guesses, labels, positive=2, draws=2).value == pytest.approx(
        sklearn.f1_score(labels, guesses, average=None, labels=[2], zero_division=0)[0]
    )
    assert matthews_metric(guesses, labels, draws=2).value == pytest.approx(
        sklearn.matthews_corrcoef(labels, guesses), abs=1e-12
    )


@settings(max_examples=50)
@given(NUMBERS)
def test_correlations_as_scipy_has_them(pairs: list[tuple[float, float]]) -> None:
    scipy = pytest.importorskip("scipy.stats")
    x, y = (np.array(values) for values in zip(*pairs, strict=True))
    if len(set(x)) == 1 or np.ptp(y) < 1e-6:
        return
    assert pearson_metric(x, y, draws=2).value == pytest.approx(scipy.pearsonr(x, y)[0], abs=1e-9)
    assert spearman_metric(x, y, draws=2).value == pytest.approx(scipy.spearmanr(x, y)[0], abs=1e-9)


def test_correlations_by_hand() -> None:
    assert pearson_metric([1, 2, 3], [2, 4, 6]).value == 1
    assert pearson_metric([1e9 + 1, 1e9 + 2, 1e9 + 3], [3, 2, 1]).value == pytest.approx(-1)
    assert pearson_metric([1e200, 2e200, 3e200], [1, 2, 3]).value == pytest.approx(1)
    assert spearman_metric([1, 2, 3, 4], [1, 10, 100, 1000]).value == 1
    assert spearman_metric([1, 2, 2, 4], [1, 2, 3, 4]).value == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    for measure in (pearson_metric, spearman_metric):
        assert measure([0.1] * 9, list(range(9))).value == 0


@settings(max_examples=25)
@given(PAIRS, st.integers(0, 5))
def test_an_interval_holds_its_range_and_its_seed(pairs: list[tuple[int, int]], seed: int) -> None:
    guesses, labels = map(list, zip(*pairs, strict=True))
    for measure in CLASS_METRICS:
        metric = measure(guesses, labels, seed=seed)
        assert -1 <= metric.low <= metric.high <= 1 and metric.n == len(labels) and metric.seed == seed
        assert metric == measure(guesses, labels, seed=seed)


RESAMPLED: list[tuple[Callable[..., Metric], bool]] = [
    (f1_metric, True),
    (macro_f1_metric, True),
    (matthews_metric, True),
    (pearson_metric, False),
    (spearman_metric, False),
]


@pytest.mark.parametrize(("measure", "classes"), RESAMPLED)
def test_resampled_counts_are_resampled_rows(measure: Callable[..., Metric], classes: bool) -> None:
    """The quick way (counts) against the plain one (rows drawn one by one): quantiles of either differ by
    less than a tenth of the interval; an interval of 90 % would be off by a sixth of it.
    """
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 80)
    guesses = np.where(random.random(80) < 0.6, labels, random.integers(0, 3, 80))
    if not classes:
        labels, guesses = labels + 0.0, guesses + np.round(random.normal(size=80), 1)
    quick = measure(guesses, labels, seed=1, draws=4000)
    rows = random.integers(0, 80, (1500, 80))
    plain = [measure(guesses[row], labels[row], draws=1).value for row in rows]
    low, high = np.quantile(plain, (0.025, 0.975))
    assert abs(quick.low - low) + abs(quick.high - high) < 0.1 * (high - low)
    tighter = np.quantile(plain, (0.05, 0.95))
    assert abs(quick.low - tighter[0]) + abs(quick.high - tighter[1]) > 0.1 * (high - low)


def test_kl_and_agreement() -> None:
    random = np.random.default_rng(0)
    kl = torch.from_numpy(random.exponential(size=100))
    apart = Divergence(kl, torch.arange(100) % 4 > 0)
    mean, same = kl_metric(apart, seed=2), agreement_metric(apart, seed=2)
    assert mean.value == pytest.approx(float(kl.mean())) and mean.low < mean.value < mean.high
    assert (same.value, same.n, same.floor, mean.floor) == (0.75, 100, None, None)
    assert same.low < 0.75 < same.high


def test_kl_of_neighbours_that_are_alike_is_less_certain() -> None:
    """10 000 tokens: the interval of independent ones is 0.04 wide; of texts of 50 equal ones √(50/2.4) times that."""
    values = torch.from_numpy(np.random.default_rng(0).exponential(size=200)).repeat_interleave(50)
    shuffled = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
    alone, together = (kl_metric(Divergence(kl, kl > 0)) for kl in (shuffled, values))
    assert alone.value == pytest.approx(together.value)
    assert together.high - together.low > 1.3 * (alone.high - alone.low)


def test_a_task_gives_its_headline_first() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    names = [
        m.name for m in task_metrics(task("classification", "f1", ("a", "b")), logits, [0, 1, 1], seed=0)
    ]
    assert names == ["f1", "accuracy", "macro_f1", "matthews"]
    names = [
        m.name
        for m in task_metrics(task("classification", "matthews", ("a", "b")), logits, [0, 1, 1], seed=0)
    ]
    assert names[0] == "matthews"
    found = task_metrics(task("classification", "accuracy", ("a", "b", "c")), np.eye(3), [0, 1, 1], seed=0)
    assert [m.name for m in found] == ["accuracy", "macro_f1", "matthews"] and found[
        0
    ].value == pytest.approx(2 / 3)
    found = task_metrics(task("regression", "pearson"), [[1.0], [2.0], [4.0]], [1.0, 2.0, 3.0], seed=0)
    assert [m.name for m in found] == ["pearson", "spearman"] and found[1].value == 1


def test_the_positive_class_is_the_tasks() -> None:
    logits, labels = np.eye(2)[[0, 1, 1, 1]], [0, 1, 0, 1]
    first = task_metrics(task("classification", "f1", ("a", "b"), positive=0), logits, labels, seed=0)[0]
    assert (
        first.value
        == f1_metric([0, 1, 1, 1], labels, positive=0).value
        != f1_metric([0, 1, 1, 1], labels).value
    )


def test_nothing_is_skipped() -> None:
    bad = np.array([[1.0, np.nan], [1.0, 0.0]])
    with pytest.raises(FloatingPointError, match="1 outputs are not finite"):
        task_metrics(task("classification", "accuracy", ("a", "b")), bad, [0, 1], seed=0)
    with pytest.raises(FloatingPointError, match="not finite"):
        pearson_metric([1.0, np.inf], [0.0, 1.0])
    with pytest.raises(InputError, match="plain text"):
        task_metrics(task("language", "perplexity"), np.eye(2), [0, 1], seed=0)
    with pytest.raises(InputError, match="one output an example, got 2"):
        task_metrics(task("regression", "pearson"), np.eye(2), [0, 1], seed=0)
    with pytest.raises(InputError, match="one prediction a label"):
        accuracy_metric([0, 1], [0])
    with pytest.raises(InputError, match="one prediction a label"):
        matthews_metric([], [])
    with pytest.raises(InputError, match="whole numbers"):
        accuracy_metric([0.5], [1])
