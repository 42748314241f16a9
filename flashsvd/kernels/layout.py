"""Where the heads of a factored projection live: columns of P, rows of U.

A projection y = x Wᵀ + b with W ≈ U V runs as P = x Vᵀ, then head i of y is P[:, its columns] @ U[its rows] +
its bias. Factored head by head, every head owns columns of P; factored as one matrix, all heads read the same
ones.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from flashsvd.errors import InputError


@dataclass(frozen=True)
class HeadLayout:
    """Where each head's columns of P and rows of U are.

    Per head, head i owns `ranks[i]` columns of P and as many rows of U, both packed one head after another.
    With `shared`, all heads read the same k columns of P and U stacks one [k, h] block per head.

    Raises InputError for no heads, a rank below 1, or unequal ranks in a shared layout.

    >>> HeadLayout((40, 16)).table().tolist()
    [[0, 0, 40], [40, 40, 16]]
    >>> HeadLayout((24, 24), shared=True).table().tolist()
    [[0, 0, 24], [0, 24, 24]]
    """

    ranks: tuple[int, ...]
    shared: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.ranks, tuple) or not self.ranks:
            raise InputError(
                f"ranks must be a tuple with one rank per head, got {self.ranks!r}; pass (r,) * heads"
            )
        bad = [rank for rank in self.ranks if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1]
        if bad:
            raise InputError(
                f"every rank must be a whole number of at least 1, got {bad[0]!r}; raise it to 1"
            )
        if self.shared and len(set(self.ranks)) > 1:
            raise InputError(
                f"a shared layout has one rank for all heads, got {self.ranks}; repeat one rank or set "
                "shared=False"
            )

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.ranks)

    @property
    def max_rank(self) -> int:
        """The largest rank of any head."""
        return max(self.ranks)

    @property
    def p_width(self) -> int:
        """Columns of P: the ranks' sum, or the one rank that all heads share."""
        return self.ranks[0] if self.shared else sum(self.ranks)

    @property
    def u_rows(self) -> int:
        """Rows of the packed U: the ranks' sum in either layout."""
        return sum(self.ranks)

    @property
    def alignment(self) -> int:
        """The largest of 1, 2, 4, 8, 16 that divides every start and rank: how wide a kernel's loads may
        be."""
        return math.gcd(16, *self.ranks)

    @functools.cached_property
    def spans(self) -> tuple[tuple[int, int, int], ...]:
        """(first column of P, first row of U, rank) of every head."""
        starts = itertools.accumulate(self.ranks[:-1], initial=0)
        return tuple(
            (0 if self.shared else start, start, rank) for start, rank in zip(starts, self.ranks, strict=True)
        )

    def repeated(self, times: int) -> HeadLayout:
        """Every rank `times` times in a row: the query heads that read these kv heads.

        >>> HeadLayout((40, 16)).repeated(2).ranks
        (40, 40, 16, 16)
        """
        return HeadLayout(tuple(rank for rank in self.ranks for _ in range(times)), self.shared)

    def table(self) -> torch.Tensor:
        """`spans` as an int32 tensor [heads, 3] on the CPU."""
        return torch.tensor(self.spans, dtype=torch.int32)


class Projection(NamedTuple):
    """One of q, k, v as rank-space activations and what rebuilds its heads.

    Head i, [B, S, h], is p[..., ps:ps+r] @ u[us:us+r] + bias[i*h:(i+1)*h] with (ps, us, r) from the layout.
    With `u` None, p already holds the heads side by side and the bias, if any, is still to be added.
    """

    p: torch.Tensor
    """[B, S, p_width], or [B, S, H*h] when u is None; last stride 1, other strides free."""
    u: torch.Tensor | None
    """[u_rows, h], or None for a dense projection."""
    bias: torch.Tensor | None
    """[H*h], or None."""
    layout: HeadLayout | None
    """None exactly when u is None."""
    table: torch.Tensor | None
    """`layout.table()` on p's device, kept by the caller to spare a copy per call; None is allowed."""

    def head_parts(
        self, head: int, head_dim: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Views (p [B, S, r or h], u [r, h] or None, bias [h] or None) that make head `head`; nothing is
        copied."""
        columns = slice(head * head_dim, (head + 1) * head_dim)
        bias = None if self.bias is None else self.bias[columns]
        if self.u is None or self.layout is None:
            return self.p[..., columns], None, bias
        p_start, u_start, rank = self.layout.spans[head]
        return self.p[..., p_start : p_start + rank], self.u[u_start : u_start + rank], bias
