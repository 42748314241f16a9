"""Tiles of the Triton attention kernel where q and k are turned in half types, and the calls of that kind it takes."""

from __future__ import annotations

import torch

from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.tiles import AttentionTiles, attention_tiles, members_of, next_power_of_two

Layouts = tuple[HeadLayout | None, HeadLayout | None, HeadLayout | None]

_ALIGN = 8
"""Elements of a half type in 16 bytes."""


def kernel_tiles(
    seq: int,
    head_dim: int,
    layouts: Layouts,
    dtype: torch.dtype,
    *,
    wide_loads: bool = True,
    keys: int,
    group: int,
    rotary: bool,
) -> AttentionTiles:
    """Tiles for any call; see `flashsvd.kernels.tiles.attention_tiles` for the arguments.

    >>> per_head = (HeadLayout((64,) * 32),) * 3
    >>> tiles = kernel_tiles(2048, 128, per_head, torch.bfloat16, keys=2048, group=1, rotary=True)
    >>> (tiles.block_m, tiles.block_n, tiles.block_c, tiles.block_r, tiles.num_warps)
    (128, 32, 64, (64, 64, 64), 8)
    """
    if not rotary or dtype.itemsize >= 4:
        return attention_tiles(
            seq, head_dim, layouts, dtype, wide_loads=wide_loads, keys=keys, group=group, rotary=rotary
        )
    ranks = [0 if layout is None else layout.max_rank for layout in layouts]
    members = members_of(group)
    block_h, block_c = next_power_of_two(head_dim), next_power_of_two(head_dim // 2)
    # A tile of a factor is never wider than the part that it makes, for the fault that `attention_tiles` tells of.
    limits = [min(64, columns) for columns in (block_c, block_c, block_h)]
    one_pass = [rank <= limit for rank, limit in zip(ranks, limits, strict=True)]
    # Halves of q and k, their cosines and their sines want registers: 128 rows by 64 keys spill where heads are wide,
    # or where 4 warps loop over ranks.
    wide = block_h > 64
    block_m = min(128 if wide or all(one_pass) else 64, next_power_of_two(seq * members, 32))
    block_n = min(32 if wide else 64, next_power_of_two(keys, 32))
    num_warps = 8 if block_m * block_h >= 16384 else 4
    piece = _ALIGN * 32 * num_warps
    block_r = [
        max(min(next_power_of_two(rank), limit), piece // min(columns, block_n))
        for rank, limit, columns in zip(ranks, limits, (block_c, block_c, block_h), strict=True)
    ]
    return AttentionTiles(
        block_m,
        block_n,
        block_h,
        (block_r[0], block_r[1], block_r[2]),
        (one_pass[0], one_pass[1], one_pass[2]),
        num_warps,
        num_stages=3 if all(one_pass) and not wide else 2,
        block_c=block_c,
        members=members,
    )


def member_rows(tiles: AttentionTiles, dtype: torch.dtype) -> int:
    """Rows of one head of q where several share a tile: its tokens, padded to a power of two, and in half types to
    16 bytes for every thread."""
    least = 16 if dtype.itemsize >= 4 else _ALIGN * 32 * tiles.num_warps // tiles.block_r[0]
    return next_power_of_two(tiles.tokens, max(16, least))


def whole_pieces(tiles: AttentionTiles) -> bool:
    """Whether every thread loads 16 bytes or more of each operand in half types, as the kernel wants where it turns: of
    operands that are loaded in smaller pieces, Triton 3.6 makes wrong numbers on sm_90."""
    _, k, v = tiles.block_r
    smallest = min(
        k * min(tiles.block_c, tiles.block_n),
        v * min(tiles.block_h, tiles.block_n),
        tiles.block_r[0] * min(tiles.block_c, tiles.block_m),
        tiles.block_c * tiles.block_n,
    )
    return smallest >= _ALIGN * 32 * tiles.num_warps


def turns(head_dim: int, layouts: Layouts, wide_loads: bool) -> bool:
    """Whether the kernel turns heads of half types on a GPU: halves, ranks and rows all start on 16 bytes, and halves
    are wide enough for `whole_pieces`."""
    return head_dim > 32 and head_dim % (2 * _ALIGN) == 0 and starts_whole(head_dim, layouts, wide_loads)


def starts_whole(head_dim: int, layouts: Layouts, wide_loads: bool) -> bool:
    """Whether heads, ranks and rows of half types all start on 16 bytes. Where they do not, Triton 3.6 on sm_90 reads
    past a factor that two loops over keys share, which is what a window or causality makes of one."""
    starts = [head_dim, *(layout.alignment for layout in layouts if layout is not None)]
    return wide_loads and not any(start % _ALIGN for start in starts)


def doubtful(head_dim: int, group: int, dtype: torch.dtype) -> bool:
    """Whether heads that the kernel turns on a GPU are left to plain torch: of half types wider than 64, a query head
    to every kv head, Triton 3.6's code for sm_90 fails the gate (ranks of 64, 520 tokens), where groups of 4 pass."""
    return dtype.itemsize == 2 and head_dim > 64 and group == 1
