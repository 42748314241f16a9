"""Tiles of the Triton feed-forward kernel: one deterministic function, so that the same call always runs the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from flashsvd.kernels.tile_candidates import SUMS_PER_THREAD, shortlist
from flashsvd.kernels.tiles import HOPPER_SHARED_BYTES, next_power_of_two


@dataclass(frozen=True)
class FfnTiles:
    """Tiles of the Triton feed-forward kernel. A rank is taken as a block and a tail behind it, 0 where there is
    none; `block_up` and `tail_up` are of a gate's second branch, `block_n` of an output factor."""

    block_m: int
    block_d: int
    block_r1: int
    tail_r1: int
    block_up: int
    tail_up: int
    block_r2: int
    tail_r2: int
    block_n: int
    one_pass: bool
    num_warps: int
    num_stages: int

    def out_blocks(self, rank_out: int) -> int:
        """Programs that share a block of rows, each making all of its wide activation."""
        return -(-rank_out // (self.block_r2 + self.tail_r2))

    def shared_bytes(self, itemsize: int, out_width: int, *, hopper: bool) -> int:
        """An upper bound of what Triton 3.6 took in every compiled form with all ranks on chip; `out_width` is 0
        without an output factor. hopper: whether P's tiles are in shared memory too."""
        up = self.block_up + self.tail_up if self.block_up > 16 else 0
        held = self.block_r1 + self.tail_r1 + up
        outs = self.block_r2 + self.tail_r2
        tiles = self.block_d * (held + outs)
        if hopper:
            firsts = self.block_d * (self.block_r1 + self.block_up)
            elements = self.block_m * held + self.num_stages * tiles + firsts + self.block_m * self.block_d
        else:
            spare = tiles if self.block_m == 128 else tiles // 2
            elements = self.num_stages * tiles + spare + 2 * self.block_m * self.block_d
        if out_width:
            elements = max(elements, (self.block_m + (self.num_stages + 1) * self.block_n) * outs)
        return elements * itemsize + 512


def rank_tiles(rank: int) -> tuple[int, int]:
    """A rank as a block and a tail behind it, each a power of two or 0, where that pads less than one block.

    >>> [rank_tiles(rank) for rank in (7, 40, 129, 192, 240, 300, 512)]
    [(32, 0), (64, 0), (128, 32), (128, 64), (256, 0), (256, 64), (256, 256)]
    """
    # Never 16: Triton 3.6 on sm_90 went wrong on operands of 16 columns that are loaded an element at a time.
    block = next_power_of_two(rank, at_least=32)
    tail = next_power_of_two(rank - block // 2, at_least=32)
    # Below 64 the tail's own loads and products cost what its padding saves.
    split = block > 256 or (block > 64 and tail < block // 2)
    return (block // 2, tail) if split else (block, 0)


def ffn_tiles(
    rows: int,
    width: int,
    rank_in: int,
    rank_out: int,
    dtype: torch.dtype,
    *,
    rank_up: int = 0,
    out_width: int = 0,
    shared_limit_bytes: int = HOPPER_SHARED_BYTES,
    multiprocessors: int = 132,
) -> FfnTiles:
    """Tiles of the Triton feed-forward kernel: all output ranks of a row block on chip where they fit.

    `rank_up` is the rank of a gate's second branch, `out_width` the width of an output factor, 0 without.
    `shared_limit_bytes` is what one program may take; from Hopper's on, P's tiles are assumed there and below
    in registers. Each form was compiled (Triton 3.6, sm_80 and sm_90) and spills no register.
    """
    block_n = min(64, next_power_of_two(max(1, out_width), at_least=32))
    block_d = 32
    if dtype.itemsize >= 4:
        block_d = min(32, next_power_of_two(width))
        # 32 rows of a rank tile of 64 are what 4 warps hold without spills on the CUDA cores' fp32.
        one_pass = rank_in <= 64 and not rank_up
        block_r2 = min(next_power_of_two(rank_out), 64)
        tail_r2 = 64 if out_width and rank_out > 64 else 0
        return FfnTiles(
            min(32, next_power_of_two(rows)),
            block_d,
            next_power_of_two(rank_in) if one_pass else 32,
            0,
            32 if rank_up else 16,
            0,
            block_r2,
            tail_r2,
            block_n,
            one_pass,
            num_warps=8 if rank_up or tail_r2 else 4,
            num_stages=2,
        )
    hopper = shared_limit_bytes >= HOPPER_SHARED_BYTES
    widest = 512 if hopper else 256
    block_r1, tail_r1 = rank_tiles(rank_in)
    block_up, tail_up = rank_tiles(rank_up) if rank_up else (16, 0)
    block_r2, tail_r2 = rank_tiles(rank_out) if rank_out <= widest else (256, 0)
    held = block_r1 + tail_r1 + (block_up + tail_up if rank_up else 0)
    outs = block_r2 + tail_r2

    def tall(rows_alone: int) -> int:
        # 128 rows use the tensor cores about 1.2 times as well as 64, unless multiprocessors are left idle.
        waves = {m: math.ceil(math.ceil(rows / m) / multiprocessors) for m in (64, 128)}
        return 128 if waves[128] * 128 <= waves[64] * 64 * 1.2 else rows_alone

    def form(block_m: int, warps: int, stages: int) -> FfnTiles:
        return FfnTiles(
            block_m,
            block_d,
            block_r1,
            tail_r1,
            block_up,
            tail_up,
            block_r2,
            tail_r2,
            block_n,
            True,
            warps,
            stages,
        )

    # (rows, warps, stages), the best first.
    forms: list[tuple[int, int, int]] = []
    if held <= 128 and outs <= 128:
        # Two programs share a multiprocessor; better than 128 rows at rank 128 on an H200.
        forms = [(64, 4, 3), (64, 4, 2)]
    elif hopper and held <= 256 and outs <= 256:
        forms = [(tall(64), 8, 3), (64, 8, 3), (64, 8, 2)]
    elif hopper and max(rank_in, rank_up) <= 512:
        forms = [(64, 8, 3), (64, 8, 2)]
    elif held <= 192 and outs <= 192:
        forms = [(tall(64), 8, 3), (tall(64), 8, 2)]
    elif held <= 256 and outs <= 128:
        forms = [(tall(32), 8, 2)]
    elif held <= 256 and outs <= 256:
        forms = [(32, 8, 2)]
    for block_m, warps, stages in forms:
        tiles = form(block_m, warps, stages)
        if tiles.shared_bytes(dtype.itemsize, out_width, hopper=hopper) <= shared_limit_bytes:
            return replace(tiles, block_m=min(block_m, next_power_of_two(rows)))
    return replace(
        form(min(64, next_power_of_two(rows)), 8, 2),
        block_r1=64,
        tail_r1=0,
        block_up=64 if rank_up else 16,
        tail_up=0,
        one_pass=False,
    )


def ffn_candidates(
    default: FfnTiles, rows: int, dtype: torch.dtype, *, out_width: int = 0, shared_limit_bytes: int
) -> tuple[FfnTiles, ...]:
    """Tiles worth timing beside the default: rows, warps, stages and columns of the wide activation; what ranks are
    taken as stays."""
    m, warps, stages = default.block_m, default.num_warps, default.num_stages
    changes = (
        {"num_stages": stages + 1},
        {"num_stages": max(2, stages - 1)},
        {"block_m": 2 * m, "num_warps": 8},
        {"block_m": m // 2},
        {"block_m": m // 2, "num_warps": 4},
        {"num_warps": 4 if warps == 8 else 8},
        {"block_d": 2 * default.block_d, "num_stages": 2},
    )
    hopper = shared_limit_bytes >= HOPPER_SHARED_BYTES
    # Under 64 rows a half type's operands are in registers on Hopper too, and spilled up to 3 KB.
    fewest = 64 if hopper and dtype.itemsize == 2 else 16

    def fits(tiles: FfnTiles) -> bool:
        sums = tiles.block_m * (tiles.block_r2 + tiles.tail_r2 + tiles.block_d)
        return (
            fewest <= tiles.block_m <= min(128, next_power_of_two(rows))
            and sums <= SUMS_PER_THREAD * 32 * tiles.num_warps
            and tiles.shared_bytes(dtype.itemsize, out_width, hopper=hopper) <= shared_limit_bytes
        )

    return shortlist(default, changes, fits)
