"""The definition of the op: a lookup per table, a sum, a norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import embedding

from flashsvd.kernels.norm.naive import naive_norm


def naive_embed_norm(
    tables: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    bias: torch.Tensor | None,
    kind: str,
) -> torch.Tensor:
    """norm(sum of rows + bias)·weight + shift, [B, S, N], in the tables' dtype."""
    total = embedding(indices[0], tables[0])
    for table, index in zip(tables[1:], indices[1:], strict=True):
        total = total + embedding(index, table)
    return naive_norm(total, weight, shift, eps, bias, kind)
