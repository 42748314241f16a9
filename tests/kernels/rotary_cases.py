"""Calls of the rotary op that leave their inputs as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flashsvd.kernels.rotary import rotate_heads


@dataclass(frozen=True)
class RotaryInputs:
    """One product [B, S, q | k | others], and what turns the first two."""

    packed: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    widths: tuple[int, ...]

    def run(self, backend: str | None, out: torch.Tensor | None) -> torch.Tensor:
        """`packed` with its q and k turned, in other memory."""
        out = torch.empty_like(self.packed) if out is None else out
        q, k, _ = out.copy_(self.packed).split(self.widths, -1)
        rotate_heads(q, k, self.cos, self.sin, backend=backend)
        return out


def rotary_inputs(
    batch: int, seq: int, heads: int, kv_heads: int, head_dim: int, own: bool, dtype: torch.dtype
) -> RotaryInputs:
    """Random heads and angles; own: whether every sequence has its own positions."""
    generator = torch.Generator().manual_seed(seq)
    widths = (heads * head_dim, kv_heads * head_dim, 16)
    packed = torch.randn(batch, seq, sum(widths), generator=generator)
    angles = 500 * torch.rand(batch if own else 1, seq, head_dim // 2, generator=generator)
    angles = angles.repeat(1, 1, 2)
    return RotaryInputs(packed.to(dtype), angles.cos().to(dtype), angles.sin().to(dtype), widths)
