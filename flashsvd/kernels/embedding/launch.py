"""Starts the Triton embedding kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from flashsvd.kernels.arguments import check_compiled
from flashsvd.kernels.backend import on_device
from flashsvd.kernels.embedding.triton_kernel import embed_norm_kernel
from flashsvd.kernels.tiles import row_tiles


def launch_embed_norm(
    tables: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    bias: torch.Tensor | None,
    kind: str,
    out: torch.Tensor,
) -> None:
    """norm(sum of rows + bias)·weight + shift into out [B, S, N]; indices are all [B, S], arguments checked."""
    check_compiled(out)
    batch, seq, width = out.shape
    block_m, block_n = row_tiles(width)
    # The kernel has room for three tables; the first stands in for those that are not there.
    three_tables = [*tables, tables[0], tables[0]][:3]
    three_indices = [*indices, indices[0], indices[0]][:3]
    with on_device(out):
        embed_norm_kernel[(math.ceil(batch * seq / block_m),)](
            *three_tables,
            *three_indices,
            weight,
            weight if shift is None else shift,
            weight if bias is None else bias,
            out,
            batch * seq,
            seq,
            *(table.shape[0] for table in three_tables),
            *(table.stride(0) for table in three_tables),
            *(index.stride(0) for index in three_indices),
            *(index.stride(1) for index in three_indices),
            eps,
            N=width,
            TABLES=len(tables),
            IS_LAYER=kind == "layer",
            HAS_SHIFT=shift is not None,
            HAS_BIAS=bias is not None,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            num_warps=4,
            num_stages=1,
        )
