"""The norms in plain torch, a few rows at a time, so that they too need no second hidden state."""

from __future__ import annotations

import torch

from flashsvd.kernels.norm.naive import naive_norm
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
    vectors = [None if vector is None else vector.to(dtype) for vector in (weight, shift, bias)]
    wide_weight, wide_shift, wide_bias = vectors
    assert wide_weight is not None
    # The definition holds up to four tensors of a block at once.
    step = max(1, STREAM_BUDGET_BYTES // (4 * x.shape[1] * dtype.itemsize))
    for start in range(0, x.shape[0], step):
        block = x[start : start + step].to(dtype)
        out[start : start + step] = naive_norm(block, wide_weight, wide_shift, eps, wide_bias, kind)
