"""Tiles of the step's kernels: pure functions whose answers a kernel can run, and which leave no column out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.kernels.step.tiles import (
    MOST_ROWS,
    MOST_SHARES,
    MOST_STEPS,
    WIDE_BATCH,
    WideTiles,
    attend_tiles,
    head_tiles,
    product_tiles,
    row_tiles,
    shares_of,
    wide_tiles,
)
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


@given(st.integers(1, 200_000), st.integers(1, 4000).map(lambda n: 8 * n), multiprocessors, st.booleans())
def test_wide_products_are_cut_into_what_a_kernel_takes(
    rows: int, width: int, count: int, gated: bool
) -> None:
    tiles = wide_tiles(rows, width, count, gated=gated)
    assert tiles == wide_tiles(rows, width, count, gated=gated)
    assert all(map(is_power, (tiles.block_n, tiles.block_k, tiles.splits, tiles.num_warps)))
    # Layouts: 8 rows to a warp and 4 threads to 32 columns; two neighbours to a thread when sums are added.
    assert 16 <= tiles.block_n <= 64 and tiles.block_k // tiles.num_warps >= 32
    assert 1 <= tiles.x_ahead <= tiles.ahead
    assert math.ceil(width / (tiles.block_k * tiles.splits)) <= MOST_STEPS
    # Weights and x on their way, the next of each, and the sums of a product; two programs to a multiprocessor.
    threads = 32 * tiles.num_warps
    tile, part = (n * tiles.block_k * 2 / 4 / threads for n in (tiles.block_n, WIDE_BATCH))
    held = tiles.ahead * tile + tiles.x_ahead * part + tiles.block_n * WIDE_BATCH / 32
    assert held <= tiles.registers <= 255 and 2 * tiles.registers * threads <= 65536
    # A share has two steps at least, and shares are for few rows.
    assert tiles.splits == 1 or width / tiles.splits >= 2 * tiles.block_k
    blocks = math.ceil(rows / tiles.block_n)
    assert tiles.splits <= 8 * max(1, math.ceil(width / (MOST_STEPS * tiles.block_k)))
    assert tiles.splits == 1 or blocks <= count or width > MOST_STEPS * tiles.block_k


MEASURED = {
    (3072, 4096): WideTiles(16, 256, 1, 4, 6, 4, 255),
    (1024, 4096): WideTiles(32, 512, 4, 8, 2, 2, 128),
    (4096, 1024): WideTiles(32, 512, 1, 8, 2, 2, 128),
    (2992, 4096): WideTiles(16, 256, 1, 4, 6, 4, 255),
    (11008, 1496): WideTiles(32, 256, 1, 4, 2, 2, 168),
    (1496, 11008): WideTiles(32, 256, 4, 4, 4, 4, 255),
    (4096, 1496): WideTiles(32, 512, 1, 8, 2, 1, 128),
    (14336, 1496): WideTiles(32, 256, 1, 4, 4, 4, 255),
    (2048, 4096): WideTiles(32, 512, 4, 8, 2, 2, 128),
}
"""Of Llama-2-7B and Llama-3-8B at ranks 1024 and 1496, on an H200, the fastest of those tried or within 1% of it."""


@pytest.mark.parametrize(("rows", "width"), MEASURED)
def test_layers_have_the_tiles_that_were_measured(rows: int, width: int) -> None:
    assert wide_tiles(rows, width, 132, gated=rows > 10000) == MEASURED[rows, width]


def test_fewer_rows_have_more_shares_and_narrow_products_fewer_steps() -> None:
    assert [wide_tiles(rows, 8192, 132).splits for rows in (4096, 2048, 1024, 256)] == [1, 4, 8, 8]
    assert [wide_tiles(1024, width, 132).splits for width in (8192, 2048, 1024, 64)] == [8, 2, 1, 1]


@pytest.mark.parametrize("major", [0, 7, 8, 9, 10, 12])
def test_several_sequences_in_a_half_type_have_wide_tiles_on_hopper(major: int) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        wide = {
            batch
            for batch in range(1, MOST_ROWS + 1)
            if isinstance(product_tiles(batch, 640, 256, dtype, major, 132), WideTiles)
        }
        half = dtype != torch.float32
        assert wide == (set(range(2, 17)) if major == 9 and half else set())
        # The head of a vocabulary: x would be read too often.
        assert not isinstance(product_tiles(16, 32_000, 4096, dtype, major, 132), WideTiles)


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
