"""Tile sizes: one deterministic function per op and backend, so that the same call always runs the same
tiles."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.layout import HeadLayout

STREAM_BUDGET_BYTES = 5 << 18
"""What the torch loops keep alive beside inputs and output: about one core's L2 cache, so tiles stay in
it."""

HOPPER_SHARED_BYTES = 227 << 10
"""What one program may take of a Hopper multiprocessor; an A100 has 163 KiB, a consumer GPU 99 KiB."""


def shared_limit_bytes(sm: int) -> int:
    """What one program may take of a multiprocessor of compute capability `sm`, 90 for 9.0.

    Source: CUDA C++ programming guide, technical specifications per compute capability.

    >>> [shared_limit_bytes(sm) >> 10 for sm in (75, 80, 86, 89, 90)]
    [64, 163, 99, 99, 227]
    """
    if sm < 80:
        return 64 << 10
    if sm in (80, 87):
        return 163 << 10
    return HOPPER_SHARED_BYTES if 90 <= sm < 120 else 99 << 10


@functools.cache
def device_shared_bytes(device: torch.device) -> int:
    """`shared_limit_bytes` of a GPU; of a Hopper one for other devices, where kernels are interpreted."""
    if device.type != "cuda":
        return HOPPER_SHARED_BYTES
    major, minor = torch.cuda.get_device_capability(device)
    return shared_limit_bytes(10 * major + minor)


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
    batch: int,
    seq: int,
    group: int,
    head_dim: int,
    max_rank: int,
    dtype: torch.dtype,
    *,
    keys: int | None = None,
    rotary: bool = False,
    by_place: bool = False,
) -> AttentionStreamTiles:
    """Tiles of the torch attention loop for `group` query heads per kv head; max_rank 0 means all dense.

    keys: how many there are, as many as queries unless given. rotary: whether tiles of q and k are turned. by_place:
    whether what a query sees depends on its place.

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
        if by_place:
            elements += 2 * block_m * block_n
        if rotary:
            # Half a tile as it was, its cosines and its sines.
            elements += 2 * max(block_m, block_n) * head_dim
        return elements * size

    block_m, block_n = min(seq, 256), min(seq if keys is None else keys, 256)
    while per_sequence(block_m, block_n) > STREAM_BUDGET_BYTES and max(group * block_m, block_n) > 16:
        if group * block_m >= block_n and block_m > 1:
            block_m = -(-block_m // 2)
        else:
            block_n = -(-block_n // 2)
    each = per_sequence(block_m, block_n)
    block_b = max(1, min(batch, STREAM_BUDGET_BYTES // each))
    weights = max_rank * head_dim * size if cast else 0
    return AttentionStreamTiles(block_b, block_m, block_n, block_b * each + weights)


def ffn_stream_tiles(
    rows: int, width: int, dtype: torch.dtype, *, gated: bool = False, rank_out: int = 0
) -> FfnStreamTiles:
    """Tiles of the torch feed-forward loop; `gated` keeps two of them, `rank_out` above 0 their sum S as well.

    Wide in D, so that the second product has a long inner dimension. The half types take all of D at once: a
    sum split over several products would be rounded to half between them.
    """
    block_d = min(width, 1024) if accumulate_dtype(dtype) == dtype else width
    row_bytes = (block_d * (2 if gated else 1) + rank_out) * dtype.itemsize
    block_m = max(16, min(rows, STREAM_BUDGET_BYTES // row_bytes))
    if block_m < rows:
        block_m -= block_m % 16
    block_m = min(block_m, rows)
    return FfnStreamTiles(block_m, block_d, block_m * row_bytes)


@dataclass(frozen=True)
class AttentionTiles:
    """Tiles of the Triton attention kernel; the three rank tiles are for q, k and v (unused where dense).

    block_c: columns of a tile of q or k, half a head where they are turned. members: heads of a group whose queries are
    rows of one tile.
    """

    block_m: int
    block_n: int
    block_h: int
    block_r: tuple[int, int, int]
    one_pass: tuple[bool, bool, bool]
    num_warps: int
    num_stages: int
    block_c: int
    members: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of one tile of queries."""
        return self.block_m // self.members


@dataclass(frozen=True)
class RankSpaceTiles:
    """Tiles of the Triton rank-space kernel; `block_score` columns of q and k, `block_value` of v."""

    block_m: int
    block_n: int
    block_score: int
    block_value: int
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
    *,
    wide_loads: bool = True,
    keys: int | None = None,
    group: int = 1,
    rotary: bool = False,
) -> AttentionTiles:
    """Tiles of the Triton attention kernel for the layouts of q, k and v (None: dense), but for half types that are
    turned, which have their own (`flashsvd.kernels.attention.tiles`).

    wide_loads: whether pointers and strides allow loads of 16 bytes, where the ranks do. keys: how many there are, as
    many as queries unless given. group: query heads per kv head. rotary: whether q and k are turned.

    A rank of up to 64 is rebuilt in one product whose factor stays on chip for the whole key loop; larger
    ranks loop over tiles of it. For bf16 and head dim 64, 128 rows by 64 keys with 4 warps and 3 stages was the
    best of a sweep (below); half types of other head dims and fp32 were not swept.
    """
    max_ranks = [0 if layout is None else layout.max_rank for layout in layouts]
    full = dtype.itemsize >= 4
    block_h = next_power_of_two(head_dim)
    block_c = next_power_of_two(head_dim // 2) if rotary else block_h
    # Never wider than the head: Triton 3.6 on sm_90 kept a loop-invariant factor [64, 32] of v in shared memory
    # and read past it (wrong rows, then an illegal address); the same factor in tiles of 32 is right.
    limits = [min(columns, 32 if full and block_h > 64 else 64) for columns in (block_c, block_c, block_h)]
    # Half types that are loaded in pieces under 16 bytes take 64 columns where the head has them: on sm_90, Triton 3.6
    # made wrong rows of narrower tiles. Others take what holds the rank: a tile of 64 for rank 32 costs a tenth
    # (S = 512: 115.9 us against 105.6).
    starts = [head_dim if layout is None else layout.alignment for layout in layouts]
    loose = [not wide_loads or start % 8 != 0 for start in starts]
    block_r = [
        min(next_power_of_two(rank, 64 if narrow and not full else 16), limit)
        for rank, narrow, limit in zip(max_ranks, loose, limits, strict=True)
    ]
    members = members_of(group)
    block_m = 32 if full else 64 if block_h > 64 else 128
    block_n = 32 if full else 64
    block_m = min(block_m, next_power_of_two(seq * members))
    block_n = min(block_n, next_power_of_two(seq if keys is None else keys))
    one_pass = [rank <= block for rank, block in zip(max_ranks, block_r, strict=True)]
    # [16384 / S, S], 12 heads of 64, rank 32, bf16, H200, us at S = 512, 1024, 2048 and 4096:
    #   128 x 64, 4 warps, 3 stages   105.6  183.2  334.4  637.3
    #   the same with 2 stages        121.6  215.0  398.5  760.1
    #   64 x 64, 4 warps, 3 stages    108.6  192    352    671
    #   256 x 64, 8 warps, 3 stages   124.8  217    401    771
    #   128 x 128, 8 warps, 3 stages  137.7
    #   torch's flash on dense heads  107.6  193.5  359.4  692.7
    # Single-element loads need addresses, wide heads and loops over ranks sums, for which 4 warps lack registers.
    crowded = full or block_h > 64 or any(loose) or not all(one_pass)
    return AttentionTiles(
        block_m,
        block_n,
        block_h,
        (block_r[0], block_r[1], block_r[2]),
        (one_pass[0], one_pass[1], one_pass[2]),
        num_warps=8 if full or (crowded and block_m * block_h >= 8192) else 4,
        num_stages=2 if crowded else 3,
        block_c=block_c,
        members=members,
    )


def members_of(group: int) -> int:
    """Heads of a group whose queries share tiles: all, or as many as divide it and leave a tile a few tokens of each.

    >>> [members_of(group) for group in (1, 4, 7, 8, 16, 40, 71)]
    [1, 4, 7, 8, 16, 10, 1]
    """
    return max(count for count in range(1, 17) if group % count == 0)


def rank_space_tiles(
    seq: int, score: HeadLayout, value: HeadLayout, dtype: torch.dtype, *, keys: int | None = None
) -> RankSpaceTiles:
    """Tiles of the Triton rank-space kernel for the ranks of its kv heads; as many keys as queries unless given.

    For bf16 and ranks 32 and 40, 128 rows by 64 keys with 4 warps and 3 stages was the best of a sweep, or
    within 2% of it, from S = 512 to 16384 (12 heads, H200). A score rank above 128 loops over tiles of it; a
    value rank is always one tile, as its accumulator stays on chip. Raises InputError for one above 1024.
    """
    full = dtype.itemsize >= 4
    if value.max_rank > 1024:
        raise InputError(
            f"the Triton kernel takes value ranks up to 1024, got {value.max_rank}; use backend 'torch'"
        )
    widest = 64 if full else 128
    one_pass = score.max_rank <= widest
    # 32 columns 30.7 us, 64 columns 43.4 at [16, 512], 12 heads, rank 32. They need loads of 16 bytes, which the launch
    # sees to: Triton 3.6 on sm_90 made wrong rows of narrow half-type operands that were loaded in smaller pieces.
    block_score = min(next_power_of_two(score.max_rank), widest)
    block_value = next_power_of_two(value.max_rank)
    # With ranks of no common factor, loads are single elements, whose addresses spill out of 4 warps' registers.
    crowded = max(block_score, block_value) > 64 or 1 in (score.alignment, value.alignment)
    block_m = 64 if full else 128
    block_n = 32 if full else 64
    if block_value > 128:
        block_m = max(16, 8192 // block_value)
        block_n = 32 if block_value <= 256 else 16
    return RankSpaceTiles(
        min(block_m, next_power_of_two(seq)),
        min(block_n, next_power_of_two(seq if keys is None else keys)),
        block_score,
        block_value,
        one_pass,
        num_warps=8 if full or crowded else 4,
        num_stages=2 if full or crowded else 3,
    )


@dataclass(frozen=True)
class RowTiles:
    """Tiles of the Triton norm kernel."""

    block_m: int
    block_n: int
    num_warps: int = 4


def row_tiles(width: int) -> tuple[int, int]:
    """Rows and columns of the Triton kernels that hold whole rows of `width`.

    4 rows of 1024 with 4 warps: 13.0 us for the norm of 16384 rows of 768 in bf16 on an H200, one row at a time with 1,
    2 or 4 warps 14.3, 14.3 and 17.0; a copy of the same bytes takes 14.3.
    """
    block_n = next_power_of_two(width)
    return max(1, 4096 // block_n), block_n


def padding_columns(layout: HeadLayout, tile: int | None = None) -> tuple[int, ...]:
    """Columns of each head's tiles that hold no rank: work done for nothing, which makes rank a staircase.

    tile: columns of one tile, such as a `RankSpaceTiles.block_value`; unless given, the power of two that
    takes the largest rank at once.

    >>> padding_columns(HeadLayout((40, 64))), padding_columns(HeadLayout((40, 64)), tile=16)
    ((24, 0), (8, 0))
    """
    tile = next_power_of_two(layout.max_rank) if tile is None else tile
    return tuple(-rank % tile for rank in layout.ranks)
