"""Tile sizes: one deterministic function per op and backend, so that the same call always runs the same
tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flashsvd.kernels.layout import HeadLayout

STREAM_BUDGET_BYTES = 5 << 18
"""What the torch loops keep alive beside inputs and output: about one core's L2 cache, so tiles stay in
it."""


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in: float32 for the half types, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


@dataclass(frozen=True)
class AttentionStreamTiles:
    """Sequences, query rows and keys per step of the torch attention loop, and what those tiles weigh."""

    block_b: int
    block_m: int
    block_n: int
    workspace_bytes: int


@dataclass(frozen=True)
class FfnStreamTiles:
    """Rows and columns of the wide activation per step of the torch feed-forward loop, and what they
    weigh."""

    block_m: int
    block_d: int
    workspace_bytes: int


def attention_stream_tiles(
    batch: int, seq: int, group: int, head_dim: int, max_rank: int, dtype: torch.dtype
) -> AttentionStreamTiles:
    """Tiles of the torch attention loop for `group` query heads per kv head; max_rank 0 means all dense.

    Long tiles first: with all keys in one tile nothing is rebuilt twice. Then as many sequences as the budget
    holds, so that a short sequence still gives matrix products worth a call.
    """
    size = accumulate_dtype(dtype).itemsize
    cast = accumulate_dtype(dtype) != dtype

    def per_sequence(block_m: int, block_n: int) -> int:
        queries, keys = group * block_m, block_n
        # q, acc and their per-row statistics; k and v; scores.
        elements = queries * (2 * head_dim + 5) + 2 * keys * head_dim + queries * keys
        if cast:
            elements += max(block_m, block_n) * max(max_rank, head_dim)
        return elements * size

    block_m = block_n = min(seq, 256)
    while per_sequence(block_m, block_n) > STREAM_BUDGET_BYTES and max(group * block_m, block_n) > 16:
        if group * block_m >= block_n and block_m > 1:
            block_m = -(-block_m // 2)
        else:
            block_n = -(-block_n // 2)
    each = per_sequence(block_m, block_n)
    block_b = max(1, min(batch, STREAM_BUDGET_BYTES // each))
    weights = max_rank * head_dim * size if cast else 0
    return AttentionStreamTiles(block_b, block_m, block_n, block_b * each + weights)


def ffn_stream_tiles(rows: int, width: int, dtype: torch.dtype) -> FfnStreamTiles:
    """Tiles of the torch feed-forward loop.

    Wide in D, so that the second product has a long inner dimension. The half types take all of D at once: a
    sum split over several products would be rounded to half between them.
    """
    block_d = min(width, 1024) if accumulate_dtype(dtype) == dtype else width
    block_m = max(16, min(rows, STREAM_BUDGET_BYTES // (block_d * dtype.itemsize)))
    if block_m < rows:
        block_m -= block_m % 16
    block_m = min(block_m, rows)
    return FfnStreamTiles(block_m, block_d, block_m * block_d * dtype.itemsize)


@dataclass(frozen=True)
class AttentionTiles:
    """Tiles of the Triton attention kernel; the three rank tiles are for q, k and v (unused where dense)."""

    block_m: int
    block_n: int
    block_h: int
    block_r: tuple[int, int, int]
    one_pass: tuple[bool, bool, bool]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class FfnTiles:
    """Tiles of the Triton feed-forward kernel."""

    block_m: int
    block_d: int
    block_r1: int
    block_r2: int
    one_pass: bool
    num_warps: int
    num_stages: int


def next_power_of_two(count: int, at_least: int = 16) -> int:
    """The smallest power of two that is neither below `count` nor below `at_least`; 16 is the least a dot
    takes.

    >>> [next_power_of_two(count) for count in (1, 16, 40, 64, 65)]
    [16, 16, 64, 64, 128]
    """
    return max(at_least, 1 << (count - 1).bit_length())


def attention_tiles(
    seq: int,
    head_dim: int,
    layouts: tuple[HeadLayout | None, HeadLayout | None, HeadLayout | None],
    dtype: torch.dtype,
) -> AttentionTiles:
    """Tiles of the Triton attention kernel for the layouts of q, k and v (None: dense).

    A rank of up to 64 is rebuilt in one product whose factor stays on chip for the whole key loop; larger
    ranks loop over tiles of it.
    """
    max_ranks = [0 if layout is None else layout.max_rank for layout in layouts]
    full = dtype.itemsize >= 4
    block_h = next_power_of_two(head_dim)
    # Never wider than the head: Triton 3.6 on sm_90 kept a loop-invariant factor [64, 32] of v in shared memory
    # and read past it (wrong rows, then an illegal address); the same factor in tiles of 32 is right.
    limit = min(block_h, 32 if full and block_h > 64 else 64)
    block_r = [min(next_power_of_two(rank), limit) for rank in max_ranks]
    block_m = 32 if full else 64 if block_h > 64 else 128
    block_n = 32 if full else 64
    block_m = min(block_m, next_power_of_two(seq))
    block_n = min(block_n, next_power_of_two(seq))
    one_pass = [rank <= block for rank, block in zip(max_ranks, block_r, strict=True)]
    return AttentionTiles(
        block_m,
        block_n,
        block_h,
        (block_r[0], block_r[1], block_r[2]),
        (one_pass[0], one_pass[1], one_pass[2]),
        num_warps=8 if full or block_m * block_h >= 8192 else 4,
        num_stages=2,
    )


def ffn_tiles(rows: int, width: int, rank_in: int, rank_out: int, dtype: torch.dtype) -> FfnTiles:
    """Tiles of the Triton feed-forward kernel: all output ranks of a row block on chip where they fit."""
    full = dtype.itemsize >= 4
    block_r2 = min(next_power_of_two(rank_out), 64 if full else 256)
    widest = 64 if full else 256
    one_pass = rank_in <= widest
    block_r1 = next_power_of_two(rank_in) if one_pass else 32 if full else 64
    block_m = min(32 if full else 64, next_power_of_two(rows))
    block_d = min(32, next_power_of_two(width))
    return FfnTiles(block_m, block_d, block_r1, block_r2, one_pass, num_warps=4 if full else 8, num_stages=2)
