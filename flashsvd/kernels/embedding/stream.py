"""The op in plain torch, a few tokens at a time, so that beside the output only those are alive."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashsvd.kernels.norm.naive import naive_norm
from flashsvd.kernels.tiles import STREAM_BUDGET_BYTES, accumulate_dtype


def stream_embed_norm(
    tables: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    bias: torch.Tensor | None,
    kind: str,
    out: torch.Tensor,
) -> None:
    """Writes norm(sum of rows + bias)·weight + shift to out [B, S, N], contiguous; indices are all [B, S]."""
    rows = out.view(-1, out.shape[-1])
    seq = out.shape[1]
    dtype = accumulate_dtype(out.dtype)
    wide_weight = weight.to(dtype)
    wide_shift = None if shift is None else shift.to(dtype)
    # The sum and what the definition of the norm makes of it: up to four tensors of a chunk at once.
    step = max(1, STREAM_BUDGET_BYTES // (4 * rows.shape[1] * dtype.itemsize))
    for start in range(0, rows.shape[0], step):
        # A broadcast index is looked up, not flattened: that would copy it for every sequence.
        token = torch.arange(start, min(start + step, rows.shape[0]), device=out.device)
        b, s = token // seq, token % seq
        total = tables[0].index_select(0, indices[0][b, s]).to(dtype)
        for table, index in zip(tables[1:], indices[1:], strict=True):
            total += table.index_select(0, index[b, s])
        if bias is not None:
            total += bias
        rows[start : start + step] = naive_norm(total, wide_weight, wide_shift, eps, None, kind)
