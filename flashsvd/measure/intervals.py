"""Intervals of 95 %: Wilson's for a share, the percentile bootstrap for anything else. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flashsvd.errors import InputError

DRAWS = 1000
_TAILS = (0.025, 0.975)
_CHUNK = 4_000_000

Statistic = Literal["mean"] | Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""The mean, or a function of resampled values [draws, n] that gives [draws]."""


def wilson_interval(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson, JASA 22, 1927); right also near 0 and 1.

    >>> low, high = wilson_interval(90, 100)
    >>> round(low, 3), round(high, 3)
    (0.826, 0.945)
    """
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    values: ArrayLike, statistic: Statistic = "mean", *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """95 % interval of a statistic of values [n]: the percentile bootstrap (Efron, Annals of Statistics 7, 1979).

    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)

    Raises:
        InputError: no values, one that is not finite, or fewer than one draw.
    """
    given = np.asarray(values, dtype=np.float64).ravel()
    if not len(given):
        raise InputError("an interval needs at least one value, got none")
    if not np.isfinite(given).all():
        raise InputError("an interval needs finite values, got NaN or infinity")
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    random = np.random.default_rng(seed)
    found = []
    for size in chunks(draws, len(given)):
        drawn = given[random.integers(len(given), size=(size, len(given)))]
        found.append(drawn.mean(1) if statistic == "mean" else statistic(drawn))
    return percentiles(np.concatenate(found))


def percentiles(found: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of the draws [draws] of a statistic."""
    low, high = np.quantile(found, _TAILS)
    return float(low), float(high)


def chunks(draws: int, width: int) -> Iterator[int]:
    """Numbers of draws that together are `draws`, each few enough to hold `width` numbers a draw."""
    size = max(1, _CHUNK // max(1, width))
    for start in range(0, draws, size):
        yield min(size, draws - start)
