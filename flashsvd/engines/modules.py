"""The linears that hold factors. They stand where nn.Linear stood, under the same names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from flashsvd.kernels.layout import HeadLayout, Projection
from flashsvd.models.linears import split_rows
from flashsvd.models.shape import Slot


class LowRankLinear(nn.Module):
    """y = (x·Vᵀ)·Uᵀ + b: U [out, k], V [k, in], bias [out]."""

    def __init__(self, out_features: int, in_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.empty(out_features, rank), requires_grad=False)
        self.V = nn.Parameter(torch.empty(rank, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(linear(x, self.V), self.U, self.bias)


class HeadLowRankLinear(nn.Module):
    """q, k or v from factors: P = x·Vᵀ [.., R], then head i = P[.., its columns] · U[its rows].

    V [R, in], U [rows, head_dim], bias [heads·head_dim]; `layout` says which columns and rows are whose.
    """

    def __init__(self, head_dim: int, in_features: int, layout: HeadLayout, bias: bool) -> None:
        super().__init__()
        self.layout = layout
        self.head_dim = head_dim
        self.U = nn.Parameter(torch.empty(layout.u_rows, head_dim), requires_grad=False)
        self.V = nn.Parameter(torch.empty(layout.p_width, in_features), requires_grad=False)
        width = layout.heads * head_dim
        self.bias = nn.Parameter(torch.empty(width), requires_grad=False) if bias else None
        # No buffer: from_pretrained replaces buffers that are not in the file by uninitialised memory.
        self._table: torch.Tensor | None = None

    def table(self, device: torch.device) -> torch.Tensor:
        """`layout.table()` on a device, copied there once."""
        if self._table is None or self._table.device != device:
            self._table = self.layout.table().to(device)
        return self._table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = linear(x, self.V)
        if self.layout.shared:
            blocks = self.U.unflatten(0, (self.layout.heads, -1))
            heads = torch.einsum("...r,jrh->...jh", p, blocks)
        elif len(set(self.layout.ranks)) == 1:
            blocks = self.U.unflatten(0, (self.layout.heads, -1))
            heads = torch.einsum("...jr,jrh->...jh", p.unflatten(-1, (self.layout.heads, -1)), blocks)
        else:
            ranks = list(self.layout.ranks)
            parts = zip(p.split(ranks, -1), self.U.split(ranks), strict=True)
            heads = torch.stack([part @ block for part, block in parts], -2)
        out = heads.flatten(-2)
        return out if self.bias is None else out.add_(self.bias)


class FusedLinear(nn.Module):
    """Slots that the dense model computes with one linear: children by name, their outputs side by side.

    It starts with dense children that hold views of the linear's rows; `sizes` are their outputs, in order.
    """

    def __init__(self, linear: nn.Linear | Conv1D, sizes: Mapping[str, int]) -> None:
        super().__init__()
        for name, part in zip(sizes, split_rows(linear, list(sizes.values())), strict=True):
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([child(x) for child in self.children()], -1)


EXCHANGED = (LowRankLinear, HeadLowRankLinear, FusedLinear)
"""The classes that stand where nn.Linear stood."""


def low_rank_module(slot: Slot, ranks: tuple[int, ...], bias: bool) -> nn.Module:
    """An empty module for a slot whose stored ranks are given (`flashsvd.factors.layout_ranks`)."""
    if slot.heads:
        layout = HeadLayout(ranks, shared=not slot.per_head)
        return HeadLowRankLinear(slot.out_features // slot.heads, slot.in_features, layout, bias)
    return LowRankLinear(slot.out_features, slot.in_features, ranks[0], bias)


def projection(module: nn.Module, x: torch.Tensor) -> Projection:
    """What the attention kernel takes of q, k or v: rank-space activations [B, S, R], or the heads where dense."""
    if isinstance(module, HeadLowRankLinear):
        return Projection(linear(x, module.V), module.U, module.bias, module.layout, module.table(x.device))
    return Projection(module(x), None, None, None, None)
