"""Scores of predictions against labels, each with its interval and floor. No torch.

Undefined where nothing varies: a correlation is 0 then, as a model that always says the same knows nothing of the
labels, and so is an F1 of 0/0. Every interval resamples examples; `flashsvd.measure.intervals` has its sources.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flashsvd.errors import InputError, NonFiniteError
from flashsvd.measure.intervals import (
    DRAWS,
    bootstrap_interval,
    chunks,
    percentiles,
    wilson_interval,
)
from flashsvd.results import Metric

if TYPE_CHECKING:
    from flashsvd.measure.divergence import Divergence
    from flashsvd.tasks.base import Task

Floats = NDArray[np.float64]
_BLOCKS = 4096


def task_metrics(task: Task, outputs: ArrayLike, labels: ArrayLike, *, seed: int) -> tuple[Metric, ...]:
    """Every score of a labelled task, its headline metric first. outputs: logits [n, classes], or [n, 1] or [n] of a
    regression.

    Raises:
        InputError: the task has no labels, or outputs and labels do not fit.
        NonFiniteError: an output is not finite; no example is skipped.
    """
    found = np.asarray(outputs, dtype=np.float64)
    if not np.isfinite(found).all():
        raise NonFiniteError(f"{int((~np.isfinite(found)).any(-1).sum())} outputs are not finite")
    if task.kind == "language":
        raise InputError(f"{task.name} is plain text and has no labels to score")
    if task.kind == "regression":
        values = found.reshape(len(found), -1)
        if values.shape[1] != 1:
            raise InputError(f"{task.name} needs one output an example, got {values.shape[1]}")
        metrics = [
            pearson_metric(values[:, 0], labels, seed=seed),
            spearman_metric(values[:, 0], labels, seed=seed),
        ]
    else:
        guesses = found.argmax(-1)
        metrics = [accuracy_metric(guesses, labels, seed=seed), macro_f1_metric(guesses, labels, seed=seed)]
        if len(task.classes) == 2:
            metrics.insert(1, f1_metric(guesses, labels, positive=task.positive, seed=seed))
        metrics.append(matthews_metric(guesses, labels, seed=seed))
    return tuple(sorted(metrics, key=lambda metric: metric.name != task.metric))


# Classes


def accuracy_metric(predictions: ArrayLike, labels: ArrayLike, *, seed: int = 0) -> Metric:
    """Share of equal classes. predictions, labels [n]; Wilson interval."""
    guesses, truth = _classes(predictions, labels)
    right = int((guesses == truth).sum())
    low, high = wilson_interval(right, len(truth))
    floor = Counter(truth.tolist()).most_common(1)[0][1] / len(truth)
    return Metric("accuracy", right / len(truth), len(truth), low, high, floor, seed)


def f1_metric(
    predictions: ArrayLike, labels: ArrayLike, *, positive: int = 1, seed: int = 0, draws: int = DRAWS
) -> Metric:
    """F1 of one class: 2·tp / (2·tp + fp + fn)."""
    guesses, truth = _classes(predictions, labels)

    def one(guessed: Floats, true: Floats, both: Floats, names: NDArray[np.int64]) -> Floats:
        mine = names == positive
        return _ratio(2 * both[..., mine].sum(-1), guessed[..., mine].sum(-1) + true[..., mine].sum(-1))

    return _class_metric("f1", guesses, truth, one, seed, draws)


def macro_f1_metric(
    predictions: ArrayLike, labels: ArrayLike, *, seed: int = 0, draws: int = DRAWS
) -> Metric:
    """Mean F1 of all classes that occur, in the labels or the predictions."""
    guesses, truth = _classes(predictions, labels)

    def mean(guessed: Floats, true: Floats, both: Floats, names: NDArray[np.int64]) -> Floats:
        return _ratio(_ratio(2 * both, guessed + true).sum(-1), ((guessed + true) > 0).sum(-1))

    return _class_metric("macro_f1", guesses, truth, mean, seed, draws)


def matthews_metric(
    predictions: ArrayLike, labels: ArrayLike, *, seed: int = 0, draws: int = DRAWS
) -> Metric:
    """Matthews' correlation of two or more classes (Gorodkin, Computational Biology and Chemistry 28, 2004)."""
    guesses, truth = _classes(predictions, labels)

    def correlation(guessed: Floats, true: Floats, both: Floats, names: NDArray[np.int64]) -> Floats:
        n = true.sum(-1)
        top = n * both.sum(-1) - (guessed * true).sum(-1)
        spread = (n * n - (guessed * guessed).sum(-1)) * (n * n - (true * true).sum(-1))
        return _ratio(top, np.sqrt(spread))

    return _class_metric("matthews", guesses, truth, correlation, seed, draws)


_OfCounts = Callable[[Floats, Floats, Floats, NDArray[np.int64]], Floats]
"""Counts by class [..., classes] of predictions, labels and both, and the classes' numbers -> a score [...]."""


def _class_metric(
    name: str,
    guesses: NDArray[np.int64],
    truth: NDArray[np.int64],
    score: _OfCounts,
    seed: int,
    draws: int,
) -> Metric:
    """A draw of n examples is a draw of n pairs (prediction, label), so counts of pairs are all that is resampled."""
    n, names = len(truth), np.unique(np.concatenate((guesses, truth)))

    def of(pairs: NDArray[np.int64], counts: Floats) -> Floats:
        guessed = (pairs[:, :1] == names).astype(np.float64)
        true = (pairs[:, 1:] == names).astype(np.float64)
        return score(counts @ guessed, counts @ true, counts @ (guessed * true), names)

    pairs, counts = np.unique(np.stack((guesses, truth), 1), axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    drawn = [
        of(pairs, random.multinomial(n, counts / n, size=size).astype(np.float64))
        for size in chunks(draws, max(len(pairs), len(names)))
    ]
    low, high = percentiles(np.concatenate(drawn))
    commonest = Counter(truth.tolist()).most_common(1)[0][0]
    kinds, sizes = np.unique(truth, return_counts=True)
    always = np.stack((np.full_like(kinds, commonest), kinds), 1)
    floor = float(of(always, sizes.astype(np.float64)))
    return Metric(name, float(of(pairs, counts.astype(np.float64))), n, low, high, floor, seed)


# Numbers


def pearson_metric(values: ArrayLike, targets: ArrayLike, *, seed: int = 0, draws: int = DRAWS) -> Metric:
    """Pearson's correlation of values and targets [n]; 0 for who always says the mean."""
    x, y = map(_scaled, _numbers(values, targets))

    def of(counts: Floats) -> Floats:
        return _correlation(counts, x[None], y[None])

    return _number_metric("pearson", len(x), of, seed, draws)


def spearman_metric(values: ArrayLike, targets: ArrayLike, *, seed: int = 0, draws: int = DRAWS) -> Metric:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    x, y = _numbers(values, targets)
    ranks_x, ranks_y = _ranker(x), _ranker(y)

    def of(counts: Floats) -> Floats:
        return _correlation(counts, ranks_x(counts), ranks_y(counts))

    return _number_metric("spearman", len(x), of, seed, draws)


def _number_metric(name: str, n: int, of: Callable[[Floats], Floats], seed: int, draws: int) -> Metric:
    """of: how often each example was drawn, [draws, n], to the score of each draw, [draws]."""
    random = np.random.default_rng(seed)
    even = np.full(n, 1 / n)
    drawn = [of(random.multinomial(n, even, size=size).astype(np.float64)) for size in chunks(draws, 4 * n)]
    low, high = percentiles(np.concatenate(drawn))
    return Metric(name, float(of(np.ones((1, n)))[0]), n, low, high, 0.0, seed)


def _correlation(counts: Floats, x: Floats, y: Floats) -> Floats:
    """Of examples that occur counts [draws, n] times; x, y [draws or 1, n]."""
    n = counts.sum(-1, keepdims=True)
    dx = x - (counts * x).sum(-1, keepdims=True) / n
    dy = y - (counts * y).sum(-1, keepdims=True) / n
    top = (counts * dx * dy).sum(-1)
    spread = np.sqrt((counts * dx * dx).sum(-1) * (counts * dy * dy).sum(-1))
    # What rounding leaves of a spread of 0 is no spread.
    scale = n[..., 0] * np.abs(x).max() * np.abs(y).max()
    return np.clip(_ratio(top, np.where(spread > 1e-12 * scale, spread, 0.0)), -1.0, 1.0)


def _scaled(values: Floats) -> Floats:
    """About 0 and up to 1: sums of squares far from there lose the digits that differ, or overflow."""
    centred = values - values.mean()
    return centred / (np.abs(centred).max() or 1.0)


def _ranker(values: Floats) -> Callable[[Floats], Floats]:
    """From how often each example was drawn, [draws, n], to its mean rank in the draw, [draws, n]."""
    order = np.argsort(values, kind="stable")
    _, starts, inverse = np.unique(values[order], return_index=True, return_inverse=True)
    place = np.empty(len(values), dtype=np.int64)
    place[order] = inverse

    def ranks(counts: Floats) -> Floats:
        sizes = np.add.reduceat(counts[:, order], starts, axis=1)
        return (sizes.cumsum(1) - (sizes - 1) / 2)[:, place]

    return ranks


# Against the dense model


def kl_metric(divergence: Divergence, seed: int = 0, counted: str = "pieces") -> Metric:
    """Mean KL(dense ‖ compressed) in nats, over all places.

    Places next to one another are of one text and alike, so that of many places (tokens) neighbours are resampled
    together, in 4096 blocks.
    """
    kl = divergence.kl.numpy()
    parts = np.array_split(kl, min(len(kl), _BLOCKS))
    low, high = bootstrap_interval([part.mean() for part in parts], seed=seed)
    return Metric("kl", float(kl.mean()), len(kl), low, high, None, seed, counted)


def agreement_metric(divergence: Divergence, seed: int = 0, counted: str = "pieces") -> Metric:
    """Share of places where dense and compressed name the same class; Wilson interval."""
    right, n = int(divergence.agrees.sum()), len(divergence.agrees)
    low, high = wilson_interval(right, n)
    return Metric("agreement", right / n, n, low, high, None, seed, counted)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """top / bottom, 0 where bottom is."""
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    return np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0)


def _classes(predictions: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    guesses, truth = np.asarray(predictions), np.asarray(labels)
    _check_lengths(guesses, truth)
    if any(array.dtype.kind not in "iub" for array in (guesses, truth)):
        raise InputError(f"classes must be whole numbers, got {guesses.dtype} and {truth.dtype}")
    return guesses.astype(np.int64), truth.astype(np.int64)


def _numbers(values: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(values, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    _check_lengths(x, y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise NonFiniteError("a value or a target is not finite: nothing is skipped")
    return x, y


def _check_lengths(mine: NDArray[np.generic], labels: NDArray[np.generic]) -> None:
    if mine.ndim != 1 or mine.shape != labels.shape or not len(mine):
        raise InputError(
            f"expected one prediction a label and at least one, got shapes {mine.shape} and {labels.shape}"
        )
