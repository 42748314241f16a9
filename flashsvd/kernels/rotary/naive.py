"""The definition of rotary positions: pairs of columns turned by the angle of their token."""

from __future__ import annotations

import torch


def naive_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, S, H·h] with columns i and i + h/2 of every head turned by cos and sin [B or 1, S, h], in x's dtype."""
    half = cos.shape[-1] // 2
    # [B or 1, S, 1, h/2]
    cos, sin = (part[..., None, :half] for part in (cos, sin))
    # [B, S, H, h/2]
    first, second = x.unflatten(-1, (-1, 2 * half)).split(half, -1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return turned.flatten(-2).to(x.dtype)
