"""The rank-space kernel's tiles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import GPU_DTYPES

from flashsvd.kernels import HeadLayout
from flashsvd.kernels.tiles import next_power_of_two, padding_columns, rank_space_tiles


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("rank", [1, 16, 17, 40, 64, 128, 129, 300, 1024])
def test_tiles_are_powers_of_two_that_hold_their_ranks(rank: int, dtype: torch.dtype) -> None:
    layout = HeadLayout((rank, 8))
    for seq in (1, 17, 512, 16384):
        tiles = rank_space_tiles(seq, layout, layout, dtype)
        for size in (tiles.block_m, tiles.block_n, tiles.block_score, tiles.block_value):
            assert size >= 16 and size & (size - 1) == 0
        assert tiles.block_value >= rank and tiles.one_pass == (tiles.block_score >= rank)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8).map(tuple))
def test_ranks_and_padding_fill_whole_tiles(ranks: tuple[int, ...]) -> None:
    layout = HeadLayout(ranks)
    for tile in (None, 16, 64):
        width = tile or next_power_of_two(max(ranks))
        padding = padding_columns(layout, tile)
        assert all(0 <= extra < width for extra in padding)
        assert all((rank + extra) % width == 0 for rank, extra in zip(ranks, padding, strict=True))
