"""Tiles of the step's kernels: pure functions whose answers a kernel can run, and which leave no column out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.kernels.step.tiles import MOST_ROWS, MOST_SHARES, attend_tiles, head_tiles, row_tiles, shares_of
from flashsvd.kernels.tiles import next_power_of_two

dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
multiprocessors = st.sampled_from([1, 46, 108, 132, 160])


def is_power(number: int) -> bool:
    return number >= 1 and number & (number - 1) == 0


@given(st.integers(1, 8192), st.integers(1, 16))
def test_shares_of_a_rank_are_all_of_it_in_order(rank: int, shares: int) -> None:
    found = shares_of(rank, shares)
    assert [column for part in found for column in part] == list(range(rank))
    assert 1 <= len(found) <= shares
    # Rows of a head's factor that start on 16 bytes.
    assert all(part.start % 8 == 0 for part in found)
    # None is more than 8 above an even part.
    assert max(map(len, found)) < rank / shares + 8


def test_shares_grow_with_the_rank() -> None:
    assert [len(shares_of(rank, 8)) for rank in (1, 8, 9, 16, 17, 63, 64, 128, 1024)] == [
        1,
        1,
        2,
        2,
        3,
        8,
        8,
        8,
        8,
    ]


@given(
    st.integers(1, MOST_ROWS),
    st.integers(1, 200_000),
    st.integers(1, 4000).map(lambda n: 8 * n),
    dtypes,
    multiprocessors,
    st.booleans(),
)
def test_rows_are_cut_into_what_a_kernel_takes(
    batch: int, rows: int, width: int, dtype: torch.dtype, count: int, gated: bool
) -> None:
    tiles = row_tiles(batch, rows, width, dtype, count, gated=gated)
    assert tiles == row_tiles(batch, rows, width, dtype, count, gated=gated)
    assert all(map(is_power, (tiles.block_n, tiles.block_k, tiles.splits, tiles.num_warps)))
    threads = 32 * tiles.num_warps
    if batch == 1:
        # Eight numbers to a thread at least, and no more than registers hold, twice.
        assert tiles.splits == 1 and tiles.block_k >= 8
        assert 8 <= tiles.block_n * tiles.block_k / threads <= 128
        return
    assert tiles.block_n >= 16 and tiles.block_k >= 16
    # A small product is not worth shares, and no multiprocessor is to have more than two programs.
    assert tiles.splits == 1 or math.ceil(rows / tiles.block_n) * tiles.splits <= 2 * count
    assert tiles.splits == 1 or width / tiles.splits >= 4 * tiles.block_k
    # Both operands of every stage, of both products where there are two, in what a consumer's GPU has.
    columns = tiles.block_n + max(16, next_power_of_two(batch))
    stages = tiles.num_stages * tiles.block_k * dtype.itemsize * (2 if gated else 1)
    assert stages * columns <= 99 * 1024


@given(st.integers(1, MOST_ROWS), st.integers(1, 32).map(lambda n: 8 * n), dtypes)
def test_heads_are_cut_into_what_a_kernel_takes(batch: int, head_dim: int, dtype: torch.dtype) -> None:
    tiles = head_tiles(batch, head_dim, dtype)
    assert is_power(tiles.block_k) and is_power(tiles.num_warps) and tiles.block_k >= 16
    width = next_power_of_two(head_dim)
    assert is_power(tiles.block_h) and (batch == 1 or tiles.block_h == width)
    each = tiles.block_k * tiles.block_h / (32 * tiles.num_warps)
    assert 1 <= each <= 128
    if batch == 1:
        # All tiles on their way in half of the registers.
        assert tiles.num_stages * each * dtype.itemsize / 4 <= 128
        return
    columns = width + max(16, next_power_of_two(batch))
    assert tiles.num_stages * tiles.block_k * columns * dtype.itemsize <= 99 * 1024


@given(
    st.integers(1, MOST_ROWS * 64),
    st.integers(1, 71),
    st.integers(1, 32).map(lambda n: 8 * n),
    dtypes,
    multiprocessors,
    st.integers(1, 5000),
)
def test_keys_are_cut_into_what_a_kernel_takes(
    pairs: int, group: int, widest: int, dtype: torch.dtype, count: int, capacity: int
) -> None:
    tiles = attend_tiles(pairs, group, widest, dtype, count, capacity=capacity)
    assert all(map(is_power, (tiles.block_g, tiles.block_t, tiles.splits, tiles.num_warps)))
    # The matrix units take 16 rows and as many keys; a single query may go without.
    assert tiles.block_g >= group and tiles.block_t >= (8 if tiles.block_g == 1 else 16)
    assert tiles.block_g >= 16 or (tiles.block_g == 1 and group == 1)
    # Where the launch makes room for the parts.
    assert tiles.splits <= MOST_SHARES
    warps = 16 if dtype != torch.float32 else 8
    assert tiles.splits == 1 or pairs * tiles.splits * tiles.num_warps <= warps * count
    # A tile of keys and one of values in registers, with what is made of them.
    held = tiles.block_t * next_power_of_two(widest) * dtype.itemsize / (32 * tiles.num_warps)
    assert held <= 128 or tiles.block_t == 16


@pytest.mark.parametrize(
    ("batch", "kv_heads", "splits"), [(1, 32, 16), (1, 8, 16), (1, 2, 16), (16, 32, 1), (4, 8, 16)]
)
def test_few_heads_share_their_keys_out(batch: int, kv_heads: int, splits: int) -> None:
    pairs = batch * kv_heads
    assert attend_tiles(pairs, 4, 128, torch.bfloat16, 132, capacity=544).splits == splits
    # A query of its own that has few keys waits for all of them at once.
    alone = attend_tiles(pairs, 1, 128, torch.bfloat16, 132, capacity=544)
    assert alone.splits == (2 * splits if splits > 1 else 1)
    assert attend_tiles(pairs, 1, 128, torch.bfloat16, 132, capacity=4096).splits == splits
