"""Starts the Triton norm kernel."""

from __future__ import annotations

import math

import torch

from flashsvd.kernels.arguments import check_compiled
from flashsvd.kernels.backend import on_device
from flashsvd.kernels.norm.triton_kernel import norm_kernel
from flashsvd.kernels.tiles import row_tiles


def launch_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    bias: torch.Tensor | None,
    kind: str,
    out: torch.Tensor,
) -> None:
    """norm(x + bias)·weight + shift of x [M, N] into out [M, N]; arguments are already checked."""
    check_compiled(x)
    rows, width = x.shape
    block_m, block_n = row_tiles(width)
    with on_device(x):
        norm_kernel[(math.ceil(rows / block_m),)](
            x,
            weight,
            x if shift is None else shift,
            x if bias is None else bias,
            out,
            rows,
            x.stride(0),
            out.stride(0),
            eps,
            N=width,
            IS_LAYER=kind == "layer",
            HAS_SHIFT=shift is not None,
            HAS_BIAS=bias is not None,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            num_warps=4,
            num_stages=1,
        )
