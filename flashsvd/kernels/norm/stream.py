"""The norms in plain torch, a few rows at a time, so that they too need no second hidden state."""

from __future__ import annotations

import torch
from torch.nn.functional import layer_norm

from flashsvd.kernels.tiles import STREAM_BUDGET_BYTES, accumulate_dtype


def stream_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    bias: torch.Tensor | None,
    kind: str,
    out: torch.Tensor,
) -> None:
    """Writes norm(x + bias)·weight + shift of x [M, N] to out [M, N], which may be x."""
    dtype = accumulate_dtype(x.dtype)
    scale, offset, added = (None if vector is None else vector.to(dtype) for vector in (weight, shift, bias))
    assert scale is not None
    # Rows that are about to be written over, or copies, are worked on where they are.
    free = x.dtype != dtype or out.data_ptr() == x.data_ptr()
    # Two tensors of a block are alive at once.
    step = max(1, STREAM_BUDGET_BYTES // (2 * x.shape[1] * dtype.itemsize))
    for start in range(0, x.shape[0], step):
        m = slice(start, start + step)
        block = x[m].to(dtype)
        if added is not None:
            block = torch.add(block, added, out=block if free else None)
        if kind == "layer":
            # Torch's own: 2048 rows of 256 in a third of the time of the definition (0.6 for 1.8 ms on one core).
            block = layer_norm(block, (x.shape[1],), scale, offset, eps)
        else:
            length = torch.linalg.vector_norm(block, dim=-1, keepdim=True)
            inverse = length.square_().div_(x.shape[1]).add_(eps).rsqrt_()
            block = torch.mul(block, inverse, out=block if free or added is not None else None).mul_(scale)
            if offset is not None:
                block.add_(offset)
        out[m] = block
