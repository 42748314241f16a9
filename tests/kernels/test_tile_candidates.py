"""Tiles that tuning may try: few, the default first, sizes that a kernel takes, no more memory than there is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from kernel_cases import GPU_DTYPES

from flashsvd.kernels import HeadLayout
from flashsvd.kernels.ffn import hopper as ffn_hopper
from flashsvd.kernels.ffn.tiles import ffn_candidates, ffn_tiles
from flashsvd.kernels.rank_space import hopper as rank_space_hopper
from flashsvd.kernels.tile_candidates import (
    attention_candidates,
    attention_shared_bytes,
    rank_space_candidates,
    rank_space_shared_bytes,
    row_candidates,
)
from flashsvd.kernels.tiles import (
    RowTiles,
    attention_tiles,
    rank_space_tiles,
    row_tiles,
    shared_limit_bytes,
)
from flashsvd.kernels.tuning import MOST_CANDIDATES

SMS = (80, 90)
SEQS = (1, 17, 64, 512, 16384)


def check(found: tuple[Any, ...], default: Any, *varied: str) -> None:
    """The default first, each once, powers of two; of the fields only `varied` differ."""
    assert found[0] == default and len(set(found)) == len(found) <= MOST_CANDIDATES
    fixed = {name: value for name, value in asdict(default).items() if name not in varied}
    for tiles in found:
        fields = asdict(tiles)
        assert fields.items() >= fixed.items()
        assert all(fields[name] & (fields[name] - 1) == 0 for name in varied if "stages" not in name)
        assert min(fields[name] for name in varied) >= 1


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("rank", [8, 32, 40, 64, 128, 200, 512])
def test_rank_space(rank: int, dtype: torch.dtype, sm: int) -> None:
    layout = HeadLayout((rank, 8))
    for seq in SEQS:
        default = rank_space_tiles(seq, layout, layout, dtype)
        found = rank_space_candidates(default, seq, dtype, shared_limit_bytes(sm))
        check(found, default, "block_m", "block_n", "num_warps", "num_stages")
        for tiles in found[1:]:
            assert rank_space_shared_bytes(tiles, dtype) <= shared_limit_bytes(sm)
            assert tiles.num_warps in (4, 8) and min(tiles.block_m, tiles.block_n) >= 16
    assert rank > 200 or len(rank_space_candidates(default, 16384, dtype, 227 << 10)) >= 3


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 80, 128])
def test_attention(head_dim: int, dtype: torch.dtype, sm: int) -> None:
    for seq in SEQS:
        for layout in (None, HeadLayout((32, 40)), HeadLayout((136, 136), shared=True)):
            default = attention_tiles(seq, head_dim, (layout,) * 3, dtype)
            found = attention_candidates(default, seq, dtype, shared_limit_bytes(sm))
            check(found, default, "block_m", "block_n", "num_warps", "num_stages")
            for tiles in found[1:]:
                assert attention_shared_bytes(tiles, dtype) <= shared_limit_bytes(sm)


def test_half_types_loaded_in_pieces_keep_the_default() -> None:
    layout = HeadLayout((7, 59))
    for dtype, count in ((torch.bfloat16, 1), (torch.float16, 1), (torch.float32, 2)):
        default = attention_tiles(512, 64, (layout,) * 3, dtype)
        assert len(attention_candidates(default, 512, dtype, 227 << 10, loose=True)) >= count
        if dtype.itemsize == 2:
            assert attention_candidates(default, 512, dtype, 227 << 10, loose=True) == (default,)


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("ranks", [(40, 40), (240, 240), (64, 512), (600, 240)], ids=str)
def test_ffn(ranks: tuple[int, int], dtype: torch.dtype, sm: int) -> None:
    limit = shared_limit_bytes(sm)
    for rows in (1, 100, 16384):
        for rank_up, out_width in ((0, 0), (96, 0), (0, 768)):
            default = ffn_tiles(
                rows, 3072, *ranks, dtype, rank_up=rank_up, out_width=out_width, shared_limit_bytes=limit
            )
            found = ffn_candidates(default, rows, dtype, out_width=out_width, shared_limit_bytes=limit)
            check(found, default, "block_m", "block_d", "num_warps", "num_stages")
            for tiles in found[1:]:
                assert tiles.shared_bytes(dtype.itemsize, out_width, hopper=sm == 90) <= limit


@pytest.mark.parametrize("ranks", [(40, 40), (128, 240), (240, 240), (312, 240), (320, 320)], ids=str)
def test_ffn_hopper(ranks: tuple[int, int]) -> None:
    for rows in (1, 100, 16384):
        default = ffn_hopper.hopper_tiles(rows, *ranks)
        assert default is not None
        found = ffn_hopper.hopper_candidates(default, rows)
        check(found, default, "block_m", "block_d", "stages", "num_warps")
        for tiles in found:
            assert tiles.shared_bytes + 1024 <= shared_limit_bytes(90)
            # 16 rows of a product are the least that a warp of a group takes.
            assert tiles.block_m == 16 * tiles.num_warps


@pytest.mark.parametrize("ranks", [(8, 8), (32, 32), (40, 40), (64, 24), (64, 64)], ids=str)
def test_rank_space_hopper(ranks: tuple[int, int]) -> None:
    for seq in SEQS:
        default = rank_space_hopper.hopper_tiles(seq, *ranks)
        assert default is not None
        found = rank_space_hopper.hopper_candidates(default, seq)
        check(found, default, "block_m", "block_n", "stages", "num_warps")
        for tiles in found:
            assert 2 * tiles.shared_bytes <= shared_limit_bytes(90)
            assert tiles.block_m >= 16 * tiles.num_warps


@pytest.mark.parametrize("width", [1, 97, 768, 1024, 4096, 8192])
def test_rows(width: int) -> None:
    default = RowTiles(*row_tiles(width))
    for rows in (1, 3, 16384):
        check(row_candidates(default, rows), default, "block_m", "num_warps")
