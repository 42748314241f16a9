"""How alike two models write: where their texts part, and how far apart they are over one text. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray

from flashsvd.errors import InputError, NonFiniteError

Ranked = tuple[tuple[int, float], ...]
"""Tokens and their probabilities, the most likely first."""


@dataclass(frozen=True)
class NextToken:
    """What two models expect at one place. kl: KL(dense ‖ compressed) in nats; agrees: the same most likely token."""

    kl: float
    agrees: bool
    dense: Ranked
    compressed: Ranked


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens from the start that are the same.

    >>> common_prefix([5, 6, 7], [5, 6, 9, 9])
    2
    """
    shorter = min(len(first), len(second))
    return next((place for place in range(shorter) if first[place] != second[place]), shorter)


def parting(first: Sequence[int], second: Sequence[int]) -> int | None:
    """The place of the first token that differs, or that only one of the two has; None for equal sequences.

    >>> parting([5, 6], [5, 6, 7]), parting([5], [5])
    (2, None)
    """
    shared = common_prefix(first, second)
    return None if shared == len(first) == len(second) else shared


def differing(first: Sequence[int], second: Sequence[int]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Which tokens of each have no counterpart in the other: what is left unmarked is the same in both, in order.

    Past the common prefix it is a diff, so that a token put in or left out does not mark all that follows.

    >>> differing([1, 2, 3, 4], [1, 9, 3, 4, 4])
    ((False, True, False, False), (False, True, False, False, True))
    """
    start = common_prefix(first, second)
    marks = (
        [False] * start + [True] * (len(first) - start),
        [False] * start + [True] * (len(second) - start),
    )
    # Without autojunk=False, tokens that are frequent in a long text would never be matched.
    matcher = SequenceMatcher(None, first[start:], second[start:], autojunk=False)
    for block in matcher.get_matching_blocks():
        for marked, at in zip(marks, (block.a, block.b), strict=True):
            marked[start + at : start + at + block.size] = [False] * block.size
    return tuple(marks[0]), tuple(marks[1])


def next_tokens(
    dense: NDArray[np.floating], compressed: NDArray[np.floating], top: int = 3
) -> tuple[NextToken, ...]:
    """Place by place, from the logits [places, vocabulary] of two models that were shown the same text.

    Raises:
        InputError: the two have different shapes, or top is below 1.
        NonFiniteError: a logit is not finite.
    """
    if dense.shape != compressed.shape or dense.ndim != 2:
        raise InputError(
            f"expected logits [places, vocabulary] of one shape, got {list(dense.shape)} and {list(compressed.shape)}"
        )
    if top < 1:
        raise InputError(f"top must be at least 1, got {top}")
    return tuple(_next(reference, mine, top) for reference, mine in zip(dense, compressed, strict=True))


def _next(dense: NDArray[np.floating], compressed: NDArray[np.floating], top: int) -> NextToken:
    # One place at a time: all of them in float64 would be eight times a vocabulary of 128k for every token.
    log_p, log_q = log_softmax(dense), log_softmax(compressed)
    # Rounding may leave -1e-17 where the two are equal.
    kl = max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum()))
    return NextToken(kl, int(log_p.argmax()) == int(log_q.argmax()), ranked(log_p, top), ranked(log_q, top))


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log-probabilities of logits [vocabulary]. Raises NonFiniteError for NaN and infinities."""
    values = logits.astype(np.float64)
    if not np.isfinite(values).all():
        raise NonFiniteError("logits are not finite: use fp32")
    values -= values.max()
    found: NDArray[np.float64] = values - np.log(np.exp(values).sum())
    return found


def ranked(log_probabilities: NDArray[np.float64], top: int) -> Ranked:
    """The most likely ones, [vocabulary] -> at most `top` of them; of equal ones the lower id comes first.

    >>> ranked(np.log(np.array([0.25, 0.5, 0.25])), 2)
    ((1, 0.5), (0, 0.25))
    """
    count = min(top, len(log_probabilities))
    order = np.argsort(-log_probabilities, kind="stable")[:count]
    return tuple((int(token), round(float(np.exp(log_probabilities[token])), 12)) for token in order)


def total_variation(dense: Sequence[float], compressed: Sequence[float]) -> float:
    """Probability that has to be moved to make one distribution the other, from 0 to 1.

    >>> total_variation([0.5, 0.5, 0.0], [0.25, 0.5, 0.25])
    0.25
    """
    return 0.5 * sum(abs(p - q) for p, q in zip(dense, compressed, strict=True))
