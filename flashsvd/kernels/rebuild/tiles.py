"""Tiles of the Triton kernel that rebuilds and turns heads, and the calls that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flashsvd.kernels.rebuild.runs import Run
from flashsvd.kernels.tiles import next_power_of_two

MAX_RANK = 128
"""A head's whole rank is one tile, and on sm_90 two heads' tiles are on chip at once: 70 KiB at 128 for h = 64."""

_ALIGN = 8
"""Elements of a half type in 16 bytes."""

_FACTOR_BYTES = 64 << 10
"""Of one head's second factor on chip, which leaves the rows of P a third of a consumer GPU's 99 KiB."""


@dataclass(frozen=True)
class RebuildTiles:
    """Tokens and heads of one program, and the padded rank and pairs of a head."""

    block_m: int
    group: int
    block_r: int
    block_h: int
    num_warps: int
    num_stages: int = 2


def rebuild_tiles(count: int, rank: int, head_dim: int, dtype: torch.dtype) -> RebuildTiles:
    """Tiles for `count` heads of one rank. The heads of a program share its cosines and sines; groups divide the heads,
    so that only tokens, ranks and pairs need a mask.

    >>> rebuild_tiles(24, 32, 64, torch.bfloat16)
    RebuildTiles(block_m=64, group=4, block_r=32, block_h=32, num_warps=4, num_stages=2)
    """
    block_r, block_h = (next_power_of_two(size, 16) for size in (rank, head_dim // 2))
    group = min(4, count & -count)
    if dtype.itemsize >= 4:
        # Without tensor cores: up to 10 KB a thread spill by 4 warps with 2048 pairs, compiled for sm_80 and sm_90.
        return RebuildTiles(max(16, 1024 // block_h), group, block_r, block_h, num_warps=8)
    # Two sums, cosines and sines of 2048 pairs are 102 to 162 registers of 4 warps at h = 64, and nothing spills.
    num_warps = 4 if block_h <= 32 else 8
    block_m = max(32, 2048 // block_h)
    # 16 bytes for every thread, as a smaller tile comes in smaller pieces (`rebuild_takes`). Padding is never read.
    block_r = max(block_r, num_warps * 32 * _ALIGN // min(block_m, block_h))
    return RebuildTiles(block_m, group, block_r, block_h, num_warps)


def rebuild_takes(rows: torch.Tensor, second: torch.Tensor, runs: Sequence[Run]) -> bool:
    """Whether the kernel takes these inputs of `rebuild_rotated`, which are checked; rows [B·S, R] are p's.

    Half types have to come in pieces of 16 bytes: of operands of a product that are loaded in smaller ones, Triton 3.6
    makes wrong numbers on sm_90.
    """
    half = second.shape[1] // 2
    widest = next_power_of_two(max(run.rank for run in runs), 16)
    size = rows.element_size()
    if size > 4 or widest > MAX_RANK or widest * 2 * next_power_of_two(half, 16) * size > _FACTOR_BYTES:
        return False
    if size == 4:
        return True
    starts = (rows.stride(0), *(number for run in runs for number in (run.at, run.rank)))
    whole = half % 16 == 0 and not any(start % _ALIGN for start in starts)
    return whole and rows.data_ptr() % 16 == second.data_ptr() % 16 == 0
