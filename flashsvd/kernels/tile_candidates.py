"""Tiles worth timing beside the default: a short list per kernel, for opt-in tuning (`flashsvd.kernels.tuning`).

Only rows, keys, warps and stages are varied. Tiles over columns stay as the deterministic choice has them: it is they
that Triton 3.6 compiled wrongly where they were narrow (`flashsvd.kernels.tiles`), and a wrong address ends a process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from flashsvd.kernels.tiles import (
    AttentionTiles,
    RankSpaceTiles,
    RowTiles,
    next_power_of_two,
)
from flashsvd.kernels.tuning import MOST_CANDIDATES

T = TypeVar("T", bound=Any)

SUMS_PER_THREAD = 160
"""fp32 sums and scores that a thread may hold, of 255 registers: attention with 192 spilled 384 bytes."""


def shortlist(default: T, changes: Iterable[dict[str, int]], fits: Callable[[T], bool]) -> tuple[T, ...]:
    """The default, then those of its changed copies that fit, each once; at most `MOST_CANDIDATES`."""
    others = (dataclasses.replace(default, **change) for change in changes)
    found = dict.fromkeys((default, *(tiles for tiles in others if tiles != default and fits(tiles))))
    return tuple(found)[:MOST_CANDIDATES]


def attention_candidates(
    default: AttentionTiles,
    rows: int,
    dtype: torch.dtype,
    shared_limit_bytes: int,
    *,
    loose: bool = False,
    keys: int | None = None,
) -> tuple[AttentionTiles, ...]:
    """Of the Triton attention kernel for `rows` queries, those of heads that share tiles counted together, and as many
    keys unless given. loose: whether half types are loaded in pieces under 16 bytes, where nothing but
    the default is known to be compiled right."""
    if loose and dtype.itemsize < 4:
        return (default,)

    def fits(tiles: AttentionTiles) -> bool:
        return (
            attention_shared_bytes(tiles, dtype) <= shared_limit_bytes
            and _block_fits(tiles.block_m, tiles.block_n, rows, dtype, keys)
            and _sums_fit(tiles.block_m, tiles.block_h + tiles.block_n, tiles.num_warps)
        )

    return shortlist(default, _changes(default.block_m, default.block_n, default), fits)


def rank_space_candidates(
    default: RankSpaceTiles,
    seq: int,
    dtype: torch.dtype,
    shared_limit_bytes: int,
    *,
    keys: int | None = None,
) -> tuple[RankSpaceTiles, ...]:
    """Of the Triton rank-space kernel; as many keys as queries unless given."""

    def fits(tiles: RankSpaceTiles) -> bool:
        return (
            rank_space_shared_bytes(tiles, dtype) <= shared_limit_bytes
            and _block_fits(tiles.block_m, tiles.block_n, seq, dtype, keys)
            and _sums_fit(tiles.block_m, tiles.block_value + tiles.block_n, tiles.num_warps)
        )

    return shortlist(default, _changes(default.block_m, default.block_n, default), fits)


def row_candidates(default: RowTiles, rows: int) -> tuple[RowTiles, ...]:
    """Of the norm kernel, which takes no shared memory to speak of."""
    m = default.block_m
    forms = ((2 * m, 8), (2 * m, 4), (m, 8), (m // 2, 4), (m // 2, 2), (m, 2), (4 * m, 8))

    def fits(tiles: RowTiles) -> bool:
        each = tiles.block_m * tiles.block_n // (32 * tiles.num_warps)
        return 1 <= tiles.block_m <= next_power_of_two(rows, 1) and each <= SUMS_PER_THREAD // 2

    return shortlist(default, ({"block_m": block, "num_warps": warps} for block, warps in forms), fits)


def attention_shared_bytes(tiles: AttentionTiles, dtype: torch.dtype) -> int:
    """An estimate from above of what the attention kernel keeps in shared memory: one tile each of q, of rebuilt k and
    v and in fp32 of weights, factors of k and v, and what is read per stage."""
    q, k, v = tiles.block_r
    stages = tiles.num_stages
    rebuilt = tiles.block_h * (tiles.block_m + 2 * tiles.block_n)
    factors = tiles.block_h * sum(
        rank * (1 if one_pass else stages) for rank, one_pass in zip((k, v), tiles.one_pass[1:], strict=True)
    )
    read = 2 * stages * tiles.block_n * tiles.block_h
    weights = tiles.block_m * tiles.block_n if dtype.itemsize >= 4 else 0
    # The rebuilding of q is over before the rest begins.
    first = q * (tiles.block_m + tiles.block_h)
    return max(first, rebuilt + factors + read + weights) * dtype.itemsize


def rank_space_shared_bytes(tiles: RankSpaceTiles, dtype: torch.dtype) -> int:
    """An estimate from above of what the rank-space kernel keeps in shared memory: a tile of q, of k and v one per
    stage, and in fp32 one of weights."""
    staged = tiles.block_n * (tiles.block_score + tiles.block_value)
    if not tiles.one_pass:
        staged += tiles.block_m * tiles.block_score
    elements = tiles.block_m * tiles.block_score + tiles.num_stages * staged
    if dtype.itemsize >= 4:
        elements += tiles.block_m * tiles.block_n
    # Sums of rows across warps.
    return elements * dtype.itemsize + 512


def _changes(m: int, n: int, default: AttentionTiles | RankSpaceTiles) -> list[dict[str, int]]:
    """Rows, keys, warps and stages of flash attention, the likeliest gains first."""
    warps, stages = default.num_warps, default.num_stages
    return [
        {"num_stages": stages + 1},
        {"num_stages": max(1, stages - 1)},
        {"block_m": m // 2, "num_warps": max(4, warps // 2)},
        {"num_warps": 4 if warps == 8 else 8},
        {"block_n": 2 * n, "num_stages": 2},
        {"block_n": 2 * n, "num_warps": 8, "num_stages": 2},
        {"block_n": n // 2},
        {"block_m": 2 * m, "num_warps": 8},
    ]


def _block_fits(block_m: int, block_n: int, rows: int, dtype: torch.dtype, keys: int | None = None) -> bool:
    """Neither above what holds the sequence nor so low that a product is mostly loads; 16 rows of fp32 spilled 6 KB."""
    most_m, most_n = next_power_of_two(rows), next_power_of_two(rows if keys is None else keys)
    return 32 <= block_m <= most_m and (16 if dtype.itemsize >= 4 else 32) <= block_n <= most_n


def _sums_fit(block_m: int, columns: int, warps: int) -> bool:
    return block_m * columns <= SUMS_PER_THREAD * 32 * warps
