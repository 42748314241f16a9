"""Tiles of the step's kernels: one deterministic function of sizes, dtype and device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flashsvd.kernels.tiles import next_power_of_two

MOST_ROWS = 64
"""The largest batch of the step's kernels."""
SHARED_BYTES = 96 << 10
"""What stages of tiles may take: less than any GPU has for a program."""


@dataclass(frozen=True)
class RowTiles:
    """Rows and columns of a tile of weights, shares of the columns, and how the kernel is compiled."""

    block_n: int
    block_k: int
    splits: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class HeadTiles:
    """Rows of a tile of a head's factor."""

    block_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class AttendTiles:
    """Rows of a tile of queries (1: no matrix units), keys of a tile, and shares of a head's keys."""

    block_g: int
    block_t: int
    splits: int
    num_warps: int


def row_tiles(
    batch: int, rows: int, width: int, dtype: torch.dtype, multiprocessors: int, *, gated: bool = False
) -> RowTiles:
    """Tiles of a product [batch, width] x [rows, width]; `gated` has two of them in one loop.

    One sequence, Llama-2-7B shapes, bf16, H200, us of a kernel in a chain of them: 3072 x 4096 with tiles of 4 x 2048
    8.2, 8 x 1024 8.5, 16 x 512 10 to 14; 4096 x 1024 with 8 x 1024 3.8; 1024 x 4096 with 2 x 2048 4.1, 4 x 2048 4.3;
    1496 x 11008 with 8 x 2048 and 8 warps 10.7, 4 x 2048 11.2; 32000 x 4096 61.8, at the speed of a copy. Sixteen, for
    3072 x 4096: 64 x 128 in 8 shares 10.7, 128 x 64 12 to 17, 32 x 128 12.0.
    """
    full = dtype.itemsize >= 4
    if batch == 1:
        elements = 4096 if full else 8192
        columns = 512 if width <= 512 else 1024 if width <= 1024 else 2048
        if width > 8192:
            return RowTiles(2 * elements // columns, columns, 1, 8, 1)
        block_n = min(16, elements // columns)
        return RowTiles(max(1, block_n // 2) if rows <= 1024 and width > 2048 else block_n, columns, 1, 4, 1)
    block_n, block_k = 64, 32 if full else 128 if batch <= 16 and not gated else 64
    blocks, splits = math.ceil(rows / block_n), 1
    # Work for all multiprocessors, as long as each program has a few tiles.
    while splits < 8 and blocks * splits * 2 <= 2 * multiprocessors and width >= splits * 8 * block_k:
        splits *= 2
    return RowTiles(block_n, block_k, splits, 4, 3)


def head_tiles(batch: int, head_dim: int, dtype: torch.dtype) -> HeadTiles:
    """Tiles of the factors of heads."""
    width = next_power_of_two(head_dim)
    if batch == 1:
        elements = 8192 if dtype.itemsize >= 4 else 16384
        return HeadTiles(max(16, elements // width), 4, 1)
    stages, columns = 3, width + max(16, next_power_of_two(batch))
    # Narrow heads would have so many rows to a tile that as much of P is more than fits.
    fits = SHARED_BYTES // (stages * columns * dtype.itemsize)
    rows = min(8192 // width, next_power_of_two(fits + 1) // 2)
    return HeadTiles(max(16, rows), 4, stages)


def attend_tiles(
    pairs: int, group: int, widest: int, dtype: torch.dtype, multiprocessors: int
) -> AttendTiles:
    """Tiles for `pairs` kv heads over all sequences, each with `group` queries, of `widest` columns at most.

    A single query is left to the plain units where heads are few, as there the time is that of waiting; with 16
    sequences of 512 tokens the matrix units, of whose 16 rows 15 are for nothing, took 36 us for 39.
    """
    splits = 1
    while splits < 16 and pairs * splits * 2 <= 2 * multiprocessors:
        splits *= 2
    elements = 4096 if dtype.itemsize >= 4 else 8192
    block_g = 1 if group == 1 and splits > 1 else max(16, next_power_of_two(group))
    return AttendTiles(block_g, max(16, min(64, elements // next_power_of_two(widest))), splits, 4)


def shares_of(rank: int, shares: int) -> list[range]:
    """A head's rank in at most `shares` parts, of multiples of 8 but for the last.

    >>> shares_of(62, 4), shares_of(8, 4)
    ([range(0, 16), range(16, 32), range(32, 48), range(48, 62)], [range(0, 8)])
    """
    share = math.ceil(math.ceil(rank / shares) / 8) * 8
    return [range(first, min(first + share, rank)) for first in range(0, rank, share)]
