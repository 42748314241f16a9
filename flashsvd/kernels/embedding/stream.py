"""The op in plain torch, a few tokens at a time, so that beside the output only those are alive."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashsvd.kernels.norm.stream import stream_norm
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
    # The sum and the rows that are added to it, or what the norm makes of it: two tensors of a chunk at once.
    step = max(1, STREAM_BUDGET_BYTES // (2 * rows.shape[1] * dtype.itemsize))
    for start in range(0, rows.shape[0], step):
        # A broadcast index is looked up, not flattened: that would copy it for every sequence.
        token = torch.arange(start, min(start + step, rows.shape[0]), device=out.device)
        b, s = token // seq, token % seq
        total = tables[0].index_select(0, indices[0][b, s]).to(dtype)
        for table, index in zip(tables[1:], indices[1:], strict=True):
            total += table.index_select(0, index[b, s])
        stream_norm(total, weight, shift, eps, bias, kind, total)
        rows[start : start + step] = total
