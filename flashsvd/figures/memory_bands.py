"""Where every allocation of a window lies: bands stacked in order of birth, each falling as those below it end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

MOST_BANDS = 400
"""More allocations than this in a window are drawn as areas: bands would be thinner than a pixel."""

_SMALLEST = 1 / 400
"""Share of the window's highest total below which an allocation is merged with others of its size."""

_MARKS = 6
"""Points of a band at which it can be pointed at, at most."""


@dataclass(frozen=True)
class Band:
    """One allocation over its life in a window: x [K + 1] where it changes height, low [K] bytes below it."""

    row: int
    bytes: int
    x: NDArray[np.float64]
    low: NDArray[np.float64]

    def outline(self) -> tuple[list[float], list[float]]:
        """The polygon's corners."""
        xs = np.repeat(self.x, 2)[1:-1]
        lows = np.repeat(self.low, 2)
        return [*xs, *xs[::-1]], [*lows, *(lows[::-1] + self.bytes)]

    def marks(self) -> tuple[list[float], list[float]]:
        """Points inside the polygon, spread over its life."""
        count = min(_MARKS, 1 + 2 * (len(self.x) - 1))
        at = self.x[0] + (self.x[-1] - self.x[0]) * (np.arange(count) + 0.5) / count
        step = np.clip(np.searchsorted(self.x, at, side="right") - 1, 0, len(self.low) - 1)
        return at.tolist(), (self.low[step] + self.bytes / 2).tolist()


@dataclass(frozen=True)
class Bands:
    """The bands of a window, and what was too small for one: `merged` allocations of at most `merged_bytes` each."""

    bands: tuple[Band, ...]
    merged: int
    merged_bytes: int


def within(found: pd.DataFrame, low: float, high: float) -> pd.DataFrame:
    """The allocations that are alive somewhere between two ops."""
    return found[(found["born"] < high) & (found["freed"] + 1 > low)]


def bands(found: pd.DataFrame, low: float, high: float, start: str = "x0", end: str = "x1") -> Bands:
    """Stacks the allocations of a window, which are rows of `allocations` with their x in columns `start` and `end`.

    low, high: the window in the same unit; bands are cut there. Small ones, on top of all, are left out.
    """
    x0 = np.maximum(found[start].to_numpy(dtype=float), low)
    x1 = np.minimum(found[end].to_numpy(dtype=float), high)
    sizes = found["bytes"].to_numpy(dtype=float)
    total = _highest(x0, x1, sizes)
    large = (sizes >= total * _SMALLEST) & (x1 > x0)
    small = sizes[~large]
    order = np.flatnonzero(large)
    order = order[np.argsort(found["born"].to_numpy()[order], kind="stable")]
    stacked = []
    for place, index in enumerate(order):
        below = order[:place]
        below = below[x1[below] > x0[index]]
        height = float(sizes[below].sum())
        falls = below[x1[below] < x1[index]]
        falls = falls[np.argsort(x1[falls], kind="stable")]
        times, inverse = np.unique(x1[falls], return_inverse=True)
        drops = np.zeros(len(times))
        np.add.at(drops, inverse, sizes[falls])
        stacked.append(
            Band(
                int(found.index[int(index)]),
                int(sizes[index]),
                np.concatenate([[x0[index]], times, [x1[index]]]),
                height - np.concatenate([[0.0], np.cumsum(drops)]),
            )
        )
    return Bands(tuple(stacked), len(small), int(small.max()) if len(small) else 0)


def _highest(x0: NDArray[np.float64], x1: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """The highest total of intervals that weigh `sizes`."""
    if not len(sizes):
        return 0.0
    at = np.concatenate([x1, x0])
    moved = np.concatenate([-sizes, sizes])
    # Where one ends as another begins, the end comes first.
    order = np.lexsort((moved, at))
    return float(np.cumsum(moved[order]).max())
