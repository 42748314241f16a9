"""Tiles of the step's kernels: one deterministic function of sizes, dtype and device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from flashsvd.kernels.tiles import next_power_of_two

MOST_ROWS = 64
"""The largest batch of the step's kernels."""
WIDE_BATCH = 16
"""The most sequences of `wide_kernel`, and the rows that its matrix units have for them."""
WIDE_ROWS = 16384
"""The most rows of its weights. Of the heads of vocabularies, 32000 x 4096 and 151936 x 896, it read 69.4 and 75.1 us
where `block_kernel`, with 64 rows to a program and so half the reads of x, took 66.7 and 68.6 (copies 62.4, 64.8)."""
MOST_SHARES = 32
"""The most shares that a head's keys are cut into."""
MOST_STEPS = 48
"""The most steps of a program of `wide_kernel` over a product."""
SHARED_BYTES = 96 << 10
"""What stages of tiles may take: less than any GPU has for a program."""


@dataclass(frozen=True)
class RowTiles:
    """Rows and columns of a tile of weights, shares of the columns, and how the kernel is compiled; num_stages: tiles
    on their way at once."""

    block_n: int
    block_k: int
    splits: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class WideTiles:
    """Rows of a tile of weights, columns of a step of all warps, shares of the columns, and how the kernel is compiled.

    ahead: steps whose weights are on their way at once; x_ahead: whose x is. registers: the most that a thread may
    have, so that programs stand beside one another on a multiprocessor.
    """

    block_n: int
    block_k: int
    splits: int
    num_warps: int
    ahead: int
    x_ahead: int
    registers: int


@dataclass(frozen=True)
class HeadTiles:
    """Rows and columns of a tile of a head's factor; num_stages: tiles on their way at once."""

    block_k: int
    block_h: int
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

    One sequence, Llama-2-7B shapes, bf16, H200, us of a kernel in a chain of its kind, beside the time of a copy: 3072
    x 4096 6.8 (6.0), with 8 rows to a tile 7.2; 1024 x 4096 3.3 (2.0), with two tiles ahead 3.6, and in a whole step,
    where it follows attention, 2.174 ms with 2 rows to two warps for 2.184 with 4 to four; 4096 x 1024 3.0 (2.0);
    two of 11008 x 1496 16.2 (15.7), tiles of 8 x 512 16.7; 1496 x 11008 8.7 (7.8); 4096 x 1496 4.0 (2.9); 32000 x 4096
    59.4. Sixteen, for 3072 x 4096: 64 x 128 in 8 shares 9.3, 32 x 256 10.9, 128 x 64 12 to 17; for 1024 x 4096 with a
    stage more 5.6, 6.0 without; for 4096 x 1024 in two shares with four stages 5.1, in four with three 5.6.
    """
    full = dtype.itemsize >= 4
    if batch == 1:
        return _tiles_of_one(rows, width, 2 if full else 1, gated)
    block_n, block_k = 64, 32 if full else 128 if batch <= 16 and not gated else 64
    blocks, splits = math.ceil(rows / block_n), 1
    # Work for all multiprocessors, as long as each program has a few tiles.
    most = multiprocessors if width <= 2048 and not full else 2 * multiprocessors
    while splits < 8 and blocks * splits * 2 <= most and width >= splits * 8 * block_k:
        splits *= 2
    stage = (block_n + max(16, next_power_of_two(batch))) * block_k * dtype.itemsize * (2 if gated else 1)
    deep = blocks * splits <= multiprocessors and 4 * stage <= SHARED_BYTES
    return RowTiles(block_n, block_k, splits, 4, 4 if deep else 3)


def by_wide(batch: int, rows: int, dtype: torch.dtype, major: int) -> bool:
    """Whether a product goes by `wide_kernel`, on a GPU of that major compute capability."""
    return major == 9 and dtype.itemsize == 2 and 2 <= batch <= WIDE_BATCH and rows <= WIDE_ROWS


def wide_tiles(rows: int, width: int, multiprocessors: int, *, gated: bool = False) -> WideTiles:
    """Tiles of a product of 2 to 16 sequences in a half type; `gated` has two of them, one after the other.

    Sixteen sequences, bf16, H200, us of a kernel in a chain of its kind; tiles are written as rows x columns of a warp,
    warps, steps ahead of weights and of x, shares. 3072 x 4096: 16x64 w4 6 4 1 8.62; 32x64 w4 4 4 2 8.68, in one share
    9.31. 1024 x 4096: 32x64 w8 2 2 4 4.32; 8x64 w4 16 4 1 5.26. 4096 x 1024: 32x64 w8 2 2 1 3.65; 32x64 w4 4 4 1 3.73;
    16x64 w8 2 2 1 3.93. 4096 x 1496: 32x64 w8 2 1 1 5.19; 16x64 w4 6 3 1 5.33. 1496 x 11008: 32x64 w8 2 1 4 11.56;
    32x64 w4 4 4 4 11.64, in three shares 14.27. Two of 11008 x 1496: 32x64 w4 2 2 1, three programs to a
    multiprocessor, 19.38; with 4 4, two to one, 21.21; w8 2 1 21.66; 64x32 w4 4 4 22.24. Two of 14336 x 1496, more
    programs than have a place at once: 27.63, with 4 4 24.39. 2048 x 4096: 32x64 w8 2 2 in four shares 6.68, 16 rows in
    two 7.16.
    """
    blocks, splits = math.ceil(rows / 32), 1
    if 2 * multiprocessors < blocks <= 3 * multiprocessors:
        # Small programs, three to a multiprocessor.
        tiles = WideTiles(32, 256, 1, 4, 2, 2, 168)
    elif blocks > multiprocessors:
        tiles = WideTiles(32, 256, 1, 4, 4, 4, 255)
    elif width > 2048 and 2 * blocks > multiprocessors and not gated:
        tiles = WideTiles(16, 256, 1, 4, 6, 4, 255)
    else:
        # Work for all multiprocessors, as long as each program has two steps.
        while splits < 8 and blocks * splits <= multiprocessors and width >= splits * 2048:
            splits *= 2
        block_n = 32 if 2 * blocks * splits > multiprocessors else 16
        steps = math.ceil(width / (512 * splits)) * (2 if gated else 1)
        if width <= 256 or steps > (3 if splits == 1 else 2):
            tiles = WideTiles(block_n, 256, splits, 4, 4, 4, 255)
        else:
            # All weights at once, or nearly; with a third step there is no room for x of two.
            tiles = WideTiles(block_n, 512, splits, 8, 2, 2 if steps <= 2 else 1, 128)
    # Steps are unrolled.
    while width > MOST_STEPS * tiles.block_k * tiles.splits:
        tiles = replace(tiles, splits=2 * tiles.splits)
    return tiles


def product_tiles(
    batch: int,
    rows: int,
    width: int,
    dtype: torch.dtype,
    major: int,
    multiprocessors: int,
    *,
    gated: bool = False,
) -> RowTiles | WideTiles:
    """Tiles of a product by the kernel that it goes by, on a GPU of that major compute capability."""
    if by_wide(batch, rows, dtype, major):
        return wide_tiles(rows, width, multiprocessors, gated=gated)
    return row_tiles(batch, rows, width, dtype, multiprocessors, gated=gated)


def _tiles_of_one(rows: int, width: int, halves: int, gated: bool) -> RowTiles:
    """For one sequence; halves: what to divide tiles of 16 bits by."""
    if width > 8192:
        block_k = 2048
        # All of x is in registers, and tiles are unrolled.
        while width > 16 * block_k:
            block_k *= 2
        return RowTiles(4 // halves, block_k, 1, 8, 2)
    if width > 2048:
        return RowTiles(2, 1024, 1, 2 * halves, 4) if rows <= 1024 else RowTiles(4 // halves, 1024, 1, 4, 2)
    if gated:
        return RowTiles(16 // halves, 256, 1, 4, 2)
    return RowTiles(8 // halves, 512, 1, 4, 3)


def head_tiles(batch: int, head_dim: int, dtype: torch.dtype) -> HeadTiles:
    """Tiles of the factors of heads.

    One sequence, Llama-2-7B at rank 1024 after 512 tokens, bf16, H200, ms of a whole step, whose kernels overlap: 128 x
    64 by four warps, one tile ahead, 2.173, two ahead 2.184, 64 x 64 2.186; by two warps, which is the fastest alone,
    2.286, as it needs so many registers that the others begin late; halves and quarters of a head's columns 2.34.
    Sixteen: 64 rows of a factor in one, two or three stages 3.94, 32 rows 4.33.
    """
    width = next_power_of_two(head_dim)
    if batch == 1:
        columns = min(64, width)
        elements = 4096 if dtype.itemsize >= 4 else 8192
        return HeadTiles(max(16, min(128, elements // columns)), columns, 4, 1)
    stages, columns = 2, width + max(16, next_power_of_two(batch))
    # Narrow heads would have so many rows to a tile that as much of P is more than fits.
    fits = SHARED_BYTES // (stages * columns * dtype.itemsize)
    rows = min(8192 // width, next_power_of_two(fits + 1) // 2)
    return HeadTiles(max(16, rows), width, 4, stages)


def attend_tiles(
    pairs: int, group: int, widest: int, dtype: torch.dtype, multiprocessors: int, *, capacity: int
) -> AttendTiles:
    """Tiles for `pairs` kv heads over all sequences, each with `group` queries, of `widest` columns at most; capacity:
    of the cache, in tokens.

    A single query is left to the plain units where heads are few, as there the time is that of waiting; with 16
    sequences of 512 tokens the matrix units, of whose 16 rows 15 are for nothing, took 36 us for 39. There a step, ms
    after 512 and after 4064 tokens: 32 keys by two warps 3.78 and 11.20, by four 3.95 and 12.45, 64 by four 4.08 and
    13.08 (in two shares 4.35 and 13.39), by eight 4.69 and 17.12, 16 by two 4.29 and 15.36. One sequence as in
    `head_tiles`, ms of a step: 8 keys by one warp in 32 shares 2.176, 16 keys 2.184, 32 by two warps in 16 shares
    2.219, 64 by four in 8 shares 2.260; in 64 shares 2.253. Where there are many keys more of them have to be on their
    way: after 4000 tokens, us with the heads before and the product after, 32 by two warps in 16 shares 36.6, 64 by
    four in 8 shares 39.7; 8 kv heads, groups of 4, after 512 tokens 15.7 and 16.4.
    """
    full = dtype.itemsize >= 4
    splits = 1
    while splits < MOST_SHARES // 2 and pairs * splits * 2 <= (2 if full else 4) * multiprocessors:
        splits *= 2
    least, elements, num_warps = 16, 4096, 4 if full else 2
    if splits > 1 and not full and group == 1 and capacity <= 1024:
        splits, least, elements, num_warps = 2 * splits, 8, 1024, 1
    block_g = 1 if group == 1 and splits > 1 else max(16, next_power_of_two(group))
    return AttendTiles(block_g, max(least, min(64, elements // next_power_of_two(widest))), splits, num_warps)


def shares_of(rank: int, shares: int) -> list[range]:
    """A head's rank in at most `shares` parts, of multiples of 8 but for the last.

    >>> shares_of(62, 4), shares_of(8, 4)
    ([range(0, 16), range(16, 32), range(32, 48), range(48, 62)], [range(0, 8)])
    """
    share = math.ceil(math.ceil(rank / shares) / 8) * 8
    return [range(first, min(first + share, rank)) for first in range(0, rank, share)]
