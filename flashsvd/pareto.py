"""The front of a set of points: those that no other beats in both things that are asked of them."""

from __future__ import annotations

from collections.abc import Sequence


def front(costs: Sequence[float], scores: Sequence[float], *, lower_is_better: bool = False) -> list[int]:
    """Positions of the points that are on the front, cheapest first.

    A point is on it where every other one costs more or scores worse; of equal points the first.

    >>> front([3, 1, 2, 2], [0.9, 0.5, 0.8, 0.7])
    [1, 2, 0]

    Raises:
        ValueError: not as many costs as scores.
    """
    sign = -1.0 if lower_is_better else 1.0
    pairs = list(zip(costs, (sign * score for score in scores), strict=True))
    order = sorted(range(len(pairs)), key=lambda index: (pairs[index][0], -pairs[index][1], index))
    found: list[int] = []
    best = float("-inf")
    for index in order:
        if pairs[index][1] > best:
            best = pairs[index][1]
            found.append(index)
    return found
