"""Tiles of the step's kernels: one deterministic function of sizes, dtype and device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flashsvd.kernels.tiles import next_power_of_two

MOST_ROWS = 64
"""The largest batch of the step's kernels."""


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
    """Keys of a tile, and shares of a head's keys."""

    block_t: int
    splits: int
    num_warps: int


def row_tiles(batch: int, rows: int, width: int, dtype: torch.dtype, multiprocessors: int) -> RowTiles:
    """Tiles of a product [batch, width] x [rows, width]."""
    full = dtype.itemsize >= 4
    if batch == 1:
        columns = 512 if width <= 512 else 1024 if width <= 1024 else 2048
        elements = 4096 if full else 8192
        return RowTiles(max(1, min(16, elements // columns)), columns, 1, 4, 1)
    block_n, block_k = 64, 32 if full else 128 if batch <= 16 else 64
    blocks, splits = math.ceil(rows / block_n), 1
    # Work for all programs that fit, as long as each has a few tiles.
    while splits < 8 and blocks * splits * 2 <= 4 * multiprocessors and width >= splits * 8 * block_k:
        splits *= 2
    return RowTiles(block_n, block_k, splits, 4, 3)


def head_tiles(batch: int, head_dim: int, dtype: torch.dtype) -> HeadTiles:
    """Tiles of the factors of heads."""
    elements = 4096 if dtype.itemsize >= 4 else 8192
    return HeadTiles(max(16, elements // next_power_of_two(head_dim)), 4, 1 if batch == 1 else 3)


def attend_tiles(
    pairs: int, group: int, widest: int, dtype: torch.dtype, multiprocessors: int
) -> AttendTiles:
    """Tiles for `pairs` kv heads over all sequences, each with `group` queries."""
    splits = 1
    while splits < 16 and pairs * splits * 2 <= 2 * multiprocessors:
        splits *= 2
    elements = 4096 if dtype.itemsize >= 4 else 8192
    return AttendTiles(max(16, min(64, elements // next_power_of_two(widest))), splits, 4)


def shares_of(rank: int, shares: int) -> list[range]:
    """A head's rank in at most `shares` parts, of multiples of 8 but for the last.

    >>> shares_of(62, 4), shares_of(8, 4)
    ([range(0, 16), range(16, 32), range(32, 48), range(48, 62)], [range(0, 8)])
    """
    share = math.ceil(math.ceil(rank / shares) / 8) * 8
    return [range(first, min(first + share, rank)) for first in range(0, rank, share)]
