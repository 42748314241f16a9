"""Which way a prefill takes: counts against a run through every tile, what must win, and words for a report."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashsvd.kernels import HeadLayout
from flashsvd.kernels.attention.choice import TIE, Choice, prefill_choice, visible_pairs
from flashsvd.kernels.attention.naive import visible
from flashsvd.kernels.attention.tiles import doubtful

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def chosen(
    rank: int | None,
    *,
    batch: int = 1,
    seq: int = 2048,
    past: int = 0,
    heads: int = 32,
    kv_heads: int = 32,
    head_dim: int = 128,
    shared: bool = False,
    device: torch.device = GPU,
    window: int | None = None,
    rotary: bool = True,
) -> Choice:
    q, k = (None if rank is None else HeadLayout((rank,) * count, shared) for count in (heads, kv_heads))
    dtype = torch.bfloat16 if device == GPU else torch.float32
    sizes = (batch, seq, past, heads, kv_heads, head_dim)
    return prefill_choice(*sizes, (q, k, k), dtype, device, window=window, rotary=rotary)


@given(seq=st.integers(1, 30), past=st.integers(0, 30), window=st.none() | st.integers(0, 60))
def test_pairs_are_those_that_the_definition_sees(seq: int, past: int, window: int | None) -> None:
    seen = visible(seq, past + seq, True, window, CPU)
    assert seen is not None
    assert visible_pairs(seq, past + seq, window) == int(seen.sum())


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("seq, batch", [(2048, 1), (2048, 8), (512, 4)])
def test_whole_matrix_factors_are_rebuilt_once(seq: int, batch: int, device: torch.device) -> None:
    """Rank 1024 on heads of 128: rebuilding a tile of keys is 8 times the products of 128 queries with it."""
    choice = chosen(1024, seq=seq, batch=batch, shared=True, device=device)
    assert choice.how == "rebuild once" and choice.on_chip_us > 1.5 * choice.once_us


def test_small_ranks_of_heads_of_64_are_rebuilt_on_chip() -> None:
    assert chosen(32, heads=12, kv_heads=12, head_dim=64, rotary=False).how == "rebuild on chip"


@settings(max_examples=60)
@given(
    rank=st.sampled_from((16, 32, 64, 128, 512)),
    group=st.sampled_from((1, 4, 7, 8)),
    seq=st.integers(1, 3000),
    past=st.integers(0, 3000),
    batch=st.integers(1, 9),
    head_dim=st.sampled_from((64, 128)),
    window=st.none() | st.integers(0, 5000),
    device=st.sampled_from((CPU, GPU)),
)
def test_the_faster_way_wins_and_memory_breaks_ties(
    rank: int,
    group: int,
    seq: int,
    past: int,
    batch: int,
    head_dim: int,
    window: int | None,
    device: torch.device,
) -> None:
    sizes = {
        "batch": batch,
        "seq": seq,
        "past": past,
        "heads": 2 * group,
        "kv_heads": 2,
        "head_dim": head_dim,
    }
    choice = chosen(rank, **sizes, device=device, window=window)
    assert choice == chosen(rank, **sizes, device=device, window=window)
    assert min(choice.on_chip_us, choice.once_us) > 0
    on_chip = choice.on_chip_us <= (1 + TIE) * choice.once_us
    # Left to plain torch, which has nothing on chip.
    on_chip &= not (device == GPU and doubtful(head_dim, group, torch.bfloat16))
    assert choice.how == ("rebuild on chip" if on_chip else "rebuild once")
    itemsize = 2 if device == GPU else 4
    assert choice.heads_bytes == itemsize * batch * head_dim * (seq * 2 * group + (past + seq) * 4)


def test_times_grow_with_the_rank_and_more_of_them_on_chip() -> None:
    found = [chosen(rank) for rank in (16, 32, 64, 128, 256)]
    for less, more in itertools.pairwise(found):
        assert less.on_chip_us < more.on_chip_us and less.once_us <= more.once_us
        assert more.on_chip_us - less.on_chip_us > more.once_us - less.once_us


def test_heads_that_share_keys_rebuild_them_together() -> None:
    alone, together = (chosen(64, kv_heads=kv_heads) for kv_heads in (32, 8))
    assert together.on_chip_us <= alone.on_chip_us


def test_a_window_leaves_tiles_out() -> None:
    assert chosen(64, seq=4096, window=255).on_chip_us < 0.3 * chosen(64, seq=4096).on_chip_us


def test_dense_projections_have_nothing_to_rebuild() -> None:
    assert chosen(None, rotary=False).on_chip_us < chosen(16, rotary=False).on_chip_us


def test_words_name_the_way_and_both_times() -> None:
    once = Choice("rebuild once", 2310.4, 812.0, 100 << 20)
    assert once.words == "rebuild once: 812 us predicted with 100 MiB of heads, 2310 us on chip"
    on_chip = Choice("rebuild on chip", 40.0, 812.0, 100 << 20)
    assert on_chip.words == "rebuild on chip: 40 us predicted, 812 us rebuilt once with 100 MiB of heads"
