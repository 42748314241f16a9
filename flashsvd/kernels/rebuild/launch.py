"""Starts the Triton kernel that rebuilds and turns heads, once per run of one rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from flashsvd.kernels.rebuild.runs import Run
from flashsvd.kernels.rebuild.tiles import RebuildTiles, rebuild_tiles
from flashsvd.kernels.rebuild.triton_kernel import rebuild_kernel
from flashsvd.kernels.starter import Launch

Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor], torch.Tensor]


def prepare_rebuild(
    p: torch.Tensor,
    second: torch.Tensor,
    bias: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    runs: Sequence[Run],
) -> Start:
    """What makes [B, S, heads·h] of a p, second, bias, cos and sin that look like these, which are checked and taken
    (`flashsvd.kernels.rebuild.tiles.rebuild_takes`). It keeps none of them."""
    launches = [_launch(run, p, second, bias, cos, sin, runs) for run in runs]
    shape = (*p.shape[:2], sum(run.count for run in runs) * second.shape[1])
    dtype, device = p.dtype, p.device

    def start(
        p: torch.Tensor,
        second: torch.Tensor,
        bias: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        out = torch.empty(shape, dtype=dtype, device=device)
        for launch in launches:
            # second stands in for what the kernel then never reads.
            launch(p, second, second if bias is None else bias, cos, sin, out)
        return out

    return start


def _launch(
    run: Run,
    p: torch.Tensor,
    second: torch.Tensor,
    bias: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    runs: Sequence[Run],
) -> Launch:
    batch, seq, _ = p.shape
    head_dim = second.shape[1]
    tiles = rebuild_tiles(run.count, run.rank, head_dim, p.dtype)
    blocks = math.ceil(seq / tiles.block_m)
    p_stride = p.flatten(0, 1).stride(0)
    align = math.gcd(16, p_stride, run.at, run.rank)
    return Launch(
        rebuild_kernel,
        (batch * blocks, run.count // tiles.group),
        ("p", "second", "bias", "cos", "sin", "out"),
        {
            "seq": seq,
            "blocks": blocks,
            "p_stride": p_stride // align,
            "at": run.at // align,
            "rank": run.rank // align,
            "head": run.head,
            "heads": sum(run.count for run in runs),
            "cos_batch_stride": cos.stride(0) if len(cos) > 1 else 0,
            "cos_stride": cos.stride(1),
            "sin_batch_stride": sin.stride(0) if len(sin) > 1 else 0,
            "sin_stride": sin.stride(1),
            **rebuild_constants(head_dim, align, bias is not None, tiles),
        },
        p.device,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


def rebuild_constants(head_dim: int, align: int, biased: bool, tiles: RebuildTiles) -> dict[str, int | bool]:
    """What `rebuild_kernel` is compiled for; `align` divides p's row stride, the rank and its first column."""
    return {
        "HALF": head_dim // 2,
        "ALIGN": align,
        "HAS_BIAS": biased,
        "GROUP": tiles.group,
        "BLOCK_M": tiles.block_m,
        "BLOCK_R": tiles.block_r,
        "BLOCK_H": tiles.block_h,
    }
