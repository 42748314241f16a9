"""The definition of the feed-forward op: three lines, and the wide activation [M, D] in memory."""

from __future__ import annotations

import torch

from flashsvd.kernels.ffn.activation import activate


def naive_ffn(
    p: torch.Tensor, u1: torch.Tensor, b1: torch.Tensor | None, v2: torch.Tensor, activation: str
) -> torch.Tensor:
    """act(p @ u1ᵀ + b1) @ v2ᵀ for p [M, R1], u1 [D, R1], b1 [D] or None, v2 [R2, D]; returns [M, R2]."""
    t = torch.nn.functional.linear(p, u1, b1)
    return activate(t, activation) @ v2.T
