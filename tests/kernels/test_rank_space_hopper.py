"""The Hopper rank-space kernel: what it takes anywhere, what it computes on a GPU that can run it."""

from __future__ import annotations

import pytest
import torch

from flashsvd.kernels import HeadLayout, rank_space_attention
from flashsvd.kernels.gate import assert_close
from flashsvd.kernels.rank_space.hopper import hopper_takes, hopper_tiles, prepare_hopper
from flashsvd.kernels.rank_space.naive import naive_rank_space

SCALE = 0.2


@pytest.mark.parametrize("seq", [1, 64, 65, 512, 8192])
@pytest.mark.parametrize("score", [8, 16, 32, 40, 48, 56, 64])
@pytest.mark.parametrize("value", [8, 32, 40, 64])
def test_tiles_hold_the_ranks_and_fit_a_multiprocessor(seq: int, score: int, value: int) -> None:
    tiles = hopper_tiles(seq, score, value)
    assert tiles is not None
    assert score <= sum(tiles.parts) <= tiles.score and value <= tiles.value
    shared = 2 * (tiles.block_m * tiles.score + tiles.stages * tiles.block_n * (tiles.score + tiles.value))
    # Two programs of a multiprocessor, each with room to turn its result around.
    assert 2 * (shared + 2 * tiles.block_m * tiles.value + 1024) <= 227 << 10


def test_other_calls_are_left_to_triton() -> None:
    same, mixed, wide = HeadLayout((40, 40)), HeadLayout((40, 32)), HeadLayout((72, 72))
    x = torch.zeros(1, 8, 80, dtype=torch.bfloat16)
    assert hopper_tiles(512, 72, 40) is None
    # No call of a CPU is its own, and neither are these on a GPU.
    for score, group, window, causal in (
        (same, 1, None, False),
        (mixed, 1, None, False),
        (wide, 1, None, False),
        (same, 2, None, False),
        (same, 1, 8, False),
        (same, 1, None, True),
    ):
        assert not hopper_takes(x, x, x, score, score, group, window, causal)


def packed(
    batch: int, seq: int, score: HeadLayout, value: HeadLayout, dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v side by side in rows that NaN follows, between sequences of NaN."""
    generator = torch.Generator("cuda").manual_seed(seed)
    widths = [score.p_width, score.p_width, value.p_width]
    held = torch.full((batch + 2, seq, sum(widths) + 8), float("nan"), dtype=dtype, device="cuda")
    inner = held[1:-1, :, :-8]
    inner.copy_(torch.randn(inner.shape, generator=generator, device="cuda"))
    q, k, v = inner.split(widths, -1)
    return q, k, v


def mask_of(batch: int, seq: int) -> torch.Tensor:
    """Padding at the left, at the right, everywhere, and holes."""
    mask = torch.ones(batch, seq, dtype=torch.bool, device="cuda")
    mask[0, : seq // 3] = False
    if batch > 1:
        mask[1, seq // 2 :] = False
    if batch > 2:
        mask[2] = False
    mask[-1, ::5] &= batch < 4
    return mask


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    score: HeadLayout,
    value: HeadLayout,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    assert hopper_takes(q, k, v, score, value, 1, None, False)
    prepare_hopper(q, k, v, out, score, value, SCALE, mask)(q, k, v, out, mask)
    return out


def naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    score: HeadLayout,
    value: HeadLayout,
    mask: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    q, k, v = (x.to(dtype) for x in (q, k, v))
    out = torch.empty(*q.shape[:2], value.p_width, dtype=dtype, device=q.device)
    return naive_rank_space(q, k, v, out, score, value, 1, SCALE, mask, None)


@pytest.fixture
def hopper() -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs compute capability 9")


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ranks", [(40, 40), (32, 32), (8, 64), (64, 8), (48, 24), (56, 40)], ids=str)
def test_passes_the_gate(ranks: tuple[int, int], dtype: torch.dtype, masked: bool) -> None:
    # 48 heads at S = 1025 are more tiles than programs stay for.
    for batch, seq, heads in (
        (4, 512, 12),
        (5, 1025, 12),
        (4, 97, 3),
        (3, 64, 2),
        (2, 63, 1),
        (4, 17, 5),
        (1, 1, 2),
    ):
        score, value = (HeadLayout((rank,) * heads) for rank in ranks)
        q, k, v = packed(batch, seq, score, value, dtype)
        mask = mask_of(batch, seq) if masked else None
        out = torch.full((batch, seq, value.p_width), float("nan"), dtype=dtype, device="cuda")
        attend(q, k, v, out, score, value, mask)
        expected = naive(q, k, v, score, value, mask, torch.float64)
        plain = naive(q, k, v, score, value, mask, dtype)
        assert_close(out, expected, plain, f"B {batch} S {seq} H {heads}")
        if mask is not None and batch > 2:
            assert not out[2].any()


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("rank", [32, 40])
def test_long_sequences_and_its_own_queries_place(rank: int) -> None:
    layout = HeadLayout((rank,) * 3)
    q, k, v = packed(1, 8200, layout, layout, torch.bfloat16)
    expected = naive(q, k, v, layout, layout, None, torch.float64)
    plain = naive(q, k, v, layout, layout, None, torch.bfloat16)
    fresh = torch.full((1, 8200, 3 * rank), float("nan"), dtype=torch.bfloat16, device="cuda")
    attend(q, k, v, fresh, layout, layout, None)
    assert_close(fresh, expected, plain, "fresh")
    around = k.clone(), v.clone()
    assert torch.equal(attend(q, k, v, q, layout, layout, None), fresh)
    assert torch.equal(k, around[0]) and torch.equal(v, around[1])


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
def test_the_op_takes_it() -> None:
    layout = HeadLayout((40,) * 12)
    q, k, v = packed(2, 300, layout, layout, torch.bfloat16)
    direct = torch.empty(2, 300, 480, dtype=torch.bfloat16, device="cuda")
    attend(q, k, v, direct, layout, layout, None)
    assert torch.equal(rank_space_attention(q, k, v, score=layout, value=layout, scale=SCALE), direct)
