"""The definition of the product: every sum and the bias in fp32, rounded once."""

from __future__ import annotations

import torch


def naive_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x @ weightᵀ + bias for x [..., K], weight [N, K] and bias [N] or None: [..., N] in x's dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide) @ weight.to(wide).T
    return (y if bias is None else y + bias.to(wide)).to(x.dtype)
