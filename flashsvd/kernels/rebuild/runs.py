"""Which heads share a rank, and where their factors and activations lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashsvd.errors import InputError


@dataclass(frozen=True)
class Run:
    """Heads in a row that have one padded rank: one batched product rebuilds them.

    head: the first of them. at: their first column of the rank-space activations, and their first row of second
    factors.
    """

    head: int
    count: int
    rank: int
    at: int

    @property
    def columns(self) -> slice:
        """Of the rank-space activations, and rows of second factors."""
        return slice(self.at, self.at + self.count * self.rank)


def check_runs(runs: Sequence[Run]) -> tuple[int, int]:
    """Heads and columns that the runs name; InputError unless both follow one another from 0, without a gap.

    >>> check_runs((Run(head=0, count=2, rank=8, at=0), Run(head=2, count=1, rank=16, at=16)))
    (3, 32)
    """
    if not isinstance(runs, Sequence) or not all(isinstance(run, Run) for run in runs):
        raise InputError(f"runs must be a sequence of Run, got {runs!r}")
    head = at = 0
    for run in runs:
        if (run.head, run.at) != (head, at) or run.count < 1 or run.rank < 1:
            raise InputError(
                f"runs must follow one another, the next one from head {head} and column {at} with a count and a rank "
                f"of at least 1, got {run}"
            )
        head, at = head + run.count, run.columns.stop
    if head < 2:
        raise InputError(
            f"runs must name two heads at least, one of q and one of k, got {head}; add the others"
        )
    return head, at
