"""Starts the Triton embedding kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from flashsvd.kernels.arguments import check_compiled
from flashsvd.kernels.embedding.triton_kernel import embed_norm_kernel
from flashsvd.kernels.starter import Launch
from flashsvd.kernels.tiles import row_tiles


def prepare_embed_norm(
    tables: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    shift: torch.Tensor | None,
    eps: float,
    bias: torch.Tensor | None,
    kind: str,
    out: torch.Tensor,
) -> Callable[..., None]:
    """What writes norm(sum of rows + bias)·weight + shift to an out [B, S, N], of tensors that look like these, which
    are checked; it keeps none of them."""
    check_compiled(out)
    batch, seq, width = out.shape
    block_m, block_n = row_tiles(width)
    expanded = _three([index.expand(batch, seq) for index in indices])
    launch = Launch(
        embed_norm_kernel,
        (math.ceil(batch * seq / block_m),),
        (
            *("table0", "table1", "table2", "index0", "index1", "index2"),
            *("weight", "shift", "bias", "out"),
        ),
        {
            "tokens": batch * seq,
            "seq": seq,
            **{f"table{i}_rows": table.shape[0] for i, table in enumerate(_three(tables))},
            **{f"table{i}_stride": table.stride(0) for i, table in enumerate(_three(tables))},
            **{f"index{i}_stride_b": index.stride(0) for i, index in enumerate(expanded)},
            **{f"index{i}_stride_s": index.stride(1) for i, index in enumerate(expanded)},
            "eps": eps,
            "N": width,
            "TABLES": len(tables),
            "IS_LAYER": kind == "layer",
            "HAS_SHIFT": shift is not None,
            "HAS_BIAS": bias is not None,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
        },
        out.device,
        num_warps=4,
        num_stages=1,
    )

    def start(
        tables: Sequence[torch.Tensor],
        indices: Sequence[torch.Tensor],
        weight: torch.Tensor,
        shift: torch.Tensor | None,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        # weight stands in for what the kernel then never reads.
        vectors = (weight, weight if shift is None else shift, weight if bias is None else bias)
        launch(*_three(tables), *_three(indices), *vectors, out)

    return start


def _three(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The kernel has room for three tables and indices; the first stands in for those that are not there."""
    return [*tensors, tensors[0], tensors[0]][:3]
