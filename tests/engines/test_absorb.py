"""Folded factors give the attention that the factors give, for every mixture of ranks, biases and dense slots."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flashsvd.engines.absorb import ALIGN, Absorbed, absorb, aligned, can_absorb
from flashsvd.engines.modules import HeadLowRankLinear, LowRankLinear
from flashsvd.engines.sublayer import second_of
from flashsvd.kernels.gate import relative_error
from flashsvd.kernels.layout import HeadLayout

HEADS, HEAD_DIM, HIDDEN, SEQ = 3, 8, 24, 11


def _factored(ranks: tuple[int, ...] | None, bias: bool) -> nn.Module:
    if ranks is None:
        return nn.Linear(HIDDEN, HEADS * HEAD_DIM, bias=bias, dtype=torch.float64)
    module = HeadLowRankLinear(HEAD_DIM, HIDDEN, HeadLayout(ranks), bias).double()
    for parameter in module.parameters():
        parameter.data.normal_()
    return module


def _output(rank: int | None, bias: bool) -> nn.Module:
    width = HEADS * HEAD_DIM
    if rank is None:
        return nn.Linear(width, HIDDEN, bias=bias, dtype=torch.float64)
    module = LowRankLinear(HIDDEN, width, rank, bias).double()
    for parameter in module.parameters():
        parameter.data.normal_()
    return module


def _plain(modules: list[nn.Module], o: nn.Module, x: torch.Tensor) -> torch.Tensor:
    q, k, v = (module(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(0, 1) for module in modules)
    weights = (q @ k.transpose(-1, -2) / HEAD_DIM**0.5).softmax(-1)
    return o((weights @ v).transpose(0, 1).flatten(1))


def _in_rank_space(found: Absorbed, o: nn.Module, x: torch.Tensor) -> torch.Tensor:
    packed = nn.functional.linear(x, found.qkv, found.qkv_bias)
    widths = [found.score.p_width, found.score.p_width, found.value.p_width]
    q, k, v = packed.split(widths, -1)
    heads = []
    for (at, _, rank), (v_at, _, v_rank) in zip(found.score.spans, found.value.spans, strict=True):
        scores = q[:, at : at + rank] @ k[:, at : at + rank].T / HEAD_DIM**0.5
        heads.append(scores.softmax(-1) @ v[:, v_at : v_at + v_rank])
    out = torch.cat(heads, -1) @ found.out.T
    if not found.whole:
        out = out @ second_of(o).T
    return out if found.out_bias is None else out + found.out_bias


ranks = st.none() | st.tuples(*[st.integers(1, HEAD_DIM)] * HEADS)


@settings(max_examples=60)
@given(q=ranks, k=ranks, v=ranks, o=st.none() | st.integers(1, HIDDEN), bias=st.tuples(*[st.booleans()] * 4))
def test_absorbed_attention_is_the_attention_of_the_factors(
    q: tuple[int, ...] | None,
    k: tuple[int, ...] | None,
    v: tuple[int, ...] | None,
    o: int | None,
    bias: tuple[bool, bool, bool, bool],
) -> None:
    torch.manual_seed(0)
    modules = [_factored(given, has) for given, has in zip((q, k, v), bias, strict=False)]
    last = _output(o, bias[3])
    x = torch.randn(SEQ, HIDDEN, dtype=torch.float64)
    found = absorb(modules[0], modules[1], modules[2], last, heads=HEADS, head_dim=HEAD_DIM)
    assert relative_error(_in_rank_space(found, last, x), _plain(modules, last, x)) < 1e-10
    assert all(rank % ALIGN == 0 for rank in (*found.score.ranks, *found.value.ranks))
    # Both ways of the output are met, and a dense one has one.
    assert found.out.shape == (HIDDEN if found.whole else o, found.value.p_width)
    assert o is not None or found.whole
    # A head's scores take the smaller of the two ranks (one more where a bias needs its column), padded.
    for head, rank in enumerate(found.score.ranks):
        q_rank, k_rank = (HEAD_DIM if given is None else given[head] for given in (q, k))
        assert rank < min(q_rank + bias[0], k_rank) + ALIGN


@pytest.mark.parametrize(("rank", "whole"), [(2, False), (HIDDEN - 1, True)])
def test_the_output_is_one_product_where_two_would_be_hardly_less(rank: int, whole: bool) -> None:
    modules = [_factored((3, 5, 2), True) for _ in range(3)]
    last = _output(rank, True)
    assert absorb(modules[0], modules[1], modules[2], last, heads=HEADS, head_dim=HEAD_DIM).whole is whole


def test_forgetting_the_query_bias_or_the_value_bias_is_seen() -> None:
    torch.manual_seed(0)
    modules = [_factored((3, 5, 2), True) for _ in range(3)]
    last = _output(6, True)
    x = torch.randn(SEQ, HIDDEN, dtype=torch.float64)
    right = _plain(modules, last, x)
    found = absorb(modules[0], modules[1], modules[2], last, heads=HEADS, head_dim=HEAD_DIM)
    for broken in (
        replace(found, qkv_bias=None),
        replace(found, out_bias=last.get_parameter("bias")),
    ):
        assert relative_error(_in_rank_space(broken, last, x), right) > 1e-3


def test_heads_that_share_one_p_are_not_absorbed() -> None:
    shared = HeadLowRankLinear(HEAD_DIM, HIDDEN, HeadLayout((5, 5, 5), shared=True), True)
    assert not can_absorb((_factored((1, 2, 3), True), shared, _factored(None, True)))
    assert can_absorb((_factored((1, 2, 3), True), _factored(None, False)))


@pytest.mark.parametrize("rank", [1, 7, 8, 15])
def test_aligned_factors_make_the_same_matrix(rank: int) -> None:
    u, v = torch.randn(9, rank, dtype=torch.float64), torch.randn(rank, 13, dtype=torch.float64)
    wide_u, wide_v = aligned(u, v)
    assert wide_v.shape[0] % ALIGN == 0 and wide_v.shape[0] < rank + ALIGN
    torch.testing.assert_close(wide_u @ wide_v, u @ v)
    if rank == ALIGN:
        assert wide_u is u and wide_v is v
