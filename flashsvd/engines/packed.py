"""The first factors of q, k and v as one product, from which the heads of q and k are rebuilt side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.functional import pad

from flashsvd.engines.absorb import ALIGN
from flashsvd.engines.modules import HeadLowRankLinear
from flashsvd.kernels.rebuild import Run


@dataclass(frozen=True)
class PackedHeads:
    """q, k and v of one layer. first [Rq + Rk + Rv, d] projects x to their rank space; second [Rq + Rk, h] and bias
    [(H + Hk)·h] or None rebuild the heads of q and k, of which `runs` says which rows and columns are whose."""

    first: torch.Tensor
    second: torch.Tensor
    bias: torch.Tensor | None
    runs: tuple[Run, ...]


def factored_per_head(module: nn.Module) -> TypeGuard[HeadLowRankLinear]:
    """Whether every head of a projection has factors of its own."""
    return isinstance(module, HeadLowRankLinear) and not module.layout.shared


def pack_heads(q: HeadLowRankLinear, k: HeadLowRankLinear, v: torch.Tensor) -> PackedHeads:
    """q and k with their ranks padded to multiples of ALIGN, before first factors v [Rv, d] that are padded already.

    At ranks of 29, cuBLAS would load both factors 2 bytes at a time. Factors that need no padding become views of the
    packed ones, so that they exist once.
    """
    ranks = [-(-rank // ALIGN) * ALIGN for module in (q, k) for rank in module.layout.ranks]
    first = torch.cat([*_padded(q.V, q.layout.ranks), *_padded(k.V, k.layout.ranks), v]).contiguous()
    second = torch.cat([*_padded(q.U, q.layout.ranks), *_padded(k.U, k.layout.ranks)]).contiguous()
    bias = None
    if q.bias is not None or k.bias is not None:
        zeros = (second.new_zeros(module.layout.heads * module.head_dim) for module in (q, k))
        biases = (zero if m.bias is None else m.bias.detach() for m, zero in zip((q, k), zeros, strict=True))
        bias = torch.cat(list(biases))
    at = 0
    for module in (q, k):
        rows = slice(at, at + sum(ranks[: q.layout.heads] if module is q else ranks[q.layout.heads :]))
        at = rows.stop
        if rows.stop - rows.start == module.V.shape[0]:
            module.V = nn.Parameter(first[rows], requires_grad=False)
            module.U = nn.Parameter(second[rows], requires_grad=False)
    return PackedHeads(first, second, bias, runs_of(ranks))


def _padded(factor: torch.Tensor, ranks: Sequence[int]) -> list[torch.Tensor]:
    """Rows [R, n] head by head, each with rows of zeros up to the next multiple of ALIGN."""
    return [pad(part, (0, 0, 0, -len(part) % ALIGN)) for part in factor.detach().split(list(ranks))]


def runs_of(ranks: Sequence[int]) -> tuple[Run, ...]:
    """The heads in a row that share a rank, of heads that each have columns of their own.

    >>> runs_of([8, 8, 16])
    (Run(head=0, count=2, rank=8, at=0), Run(head=2, count=1, rank=16, at=16))
    """
    runs = []
    head = at = 0
    for rank, alike in itertools.groupby(ranks):
        count = len(list(alike))
        runs.append(Run(head, count, rank, at))
        head, at = head + count, at + count * rank
    return tuple(runs)
