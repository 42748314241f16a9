"""Rotary positions in plain torch, a few tokens at a time, in the place of what is turned."""

from __future__ import annotations

import torch

from flashsvd.kernels.rotary.naive import naive_rotary
from flashsvd.kernels.tiles import STREAM_BUDGET_BYTES, accumulate_dtype


def stream_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turns the heads of x [B, S, H·h] where they are, in fp32 (fp64 for fp64)."""
    batch, seq, width = x.shape
    dtype = accumulate_dtype(x.dtype)
    # The definition holds about four tensors of a block at once.
    step = max(1, STREAM_BUDGET_BYTES // (4 * width * dtype.itemsize))
    sequences = max(1, step // seq)
    for b in range(0, batch, sequences):
        turns = [part[b : b + sequences] if len(part) > 1 else part for part in (cos, sin)]
        for s in range(0, seq, step):
            block = x[b : b + sequences, s : s + step]
            wide_cos, wide_sin = (part[:, s : s + step].to(dtype) for part in turns)
            block.copy_(naive_rotary(block.to(dtype), wide_cos, wide_sin))
