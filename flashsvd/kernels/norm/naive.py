"""The definition of the norms: a mean, a mean square, two multiplications and two additions."""

from __future__ import annotations

import torch


def naive_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    bias: torch.Tensor | None,
    kind: str,
) -> torch.Tensor:
    """norm(x + bias)·weight + shift for x [M, N], in x's dtype."""
    x = x if bias is None else x + bias
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    return y if shift is None else y + shift
