"""The packed projections of a decoder's attention: what they say of the heads, and no weight twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear

from flashsvd.engines.heads import made_heads, some_heads, turn, turned_heads
from flashsvd.engines.modules import HeadLowRankLinear, LowRankLinear
from flashsvd.engines.parts import CausalParts, causal_parts, factors_of, joined
from flashsvd.kernels.gate import relative_error
from flashsvd.kernels.layout import HeadLayout

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, SEQ = 4, 2, 16, 24, 9

per_head = st.lists(st.integers(1, HEAD_DIM), min_size=HEADS, max_size=HEADS)
ranks = st.none() | st.integers(1, HIDDEN) | per_head
"""Of a projection: dense, one rank for a whole matrix, or one for every head."""


def projected(given: int | list[int] | None, heads: int, bias: bool) -> nn.Module:
    if given is None:
        return nn.Linear(HIDDEN, heads * HEAD_DIM, bias=bias, dtype=torch.float64)
    whole = isinstance(given, int)
    layout = HeadLayout((given,) * heads if whole else tuple(given[:heads]), shared=whole)  # type: ignore[arg-type, index]
    return filled(HeadLowRankLinear(HEAD_DIM, HIDDEN, layout, bias))


def output(rank: int | None, bias: bool) -> nn.Module:
    width = HEADS * HEAD_DIM
    if rank is None:
        return nn.Linear(width, HIDDEN, bias=bias, dtype=torch.float64)
    return filled(LowRankLinear(HIDDEN, width, rank, bias))


def filled(module: nn.Module) -> nn.Module:
    module.double()
    for parameter in module.parameters():
        parameter.data.normal_()
    return module


def packed(modules: list[nn.Module], **options: Any) -> CausalParts:
    sizes = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    return causal_parts(
        *modules, **{**sizes, "rotary": False, "head_norms": False, "cache": "dense", **options}
    )


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention of heads [H, S, w] and [Hk, S, w]."""
    k, v = (part.repeat_interleave(len(q) // len(part), 0) for part in (k, v))
    scores = (q @ k.mT * scale).masked_fill(torch.ones(SEQ, SEQ).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def plain(modules: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
    q, k, v = (module(x).unflatten(-1, (-1, HEAD_DIM)).transpose(0, 1) for module in modules[:3])
    return modules[3](attended(q, k, v, HEAD_DIM**-0.5))


def of_parts(parts: CausalParts, x: torch.Tensor) -> torch.Tensor:
    p = linear(x, parts.first, parts.first_bias)[None]
    q, k, v = (
        made_heads(p, heads)[0].unflatten(-1, (heads.heads, heads.width)).transpose(0, 1)
        for heads in (parts.q, parts.k, parts.v)
    )
    y = attended(q, k, v, parts.scale)
    for weight in parts.out:
        y = y @ weight.T
    return y if parts.out_bias is None else y + parts.out_bias


@settings(max_examples=80)
@given(
    given=st.tuples(ranks, ranks, ranks),
    o=st.none() | st.integers(1, HIDDEN),
    bias=st.tuples(*[st.booleans()] * 4),
    cache=st.sampled_from(["dense", "rank"]),
    rotary=st.booleans(),
)
def test_packed_attention_is_the_attention_of_the_modules(
    given: tuple[Any, ...], o: int | None, bias: tuple[bool, ...], cache: str, rotary: bool
) -> None:
    torch.manual_seed(0)
    heads = (HEADS, KV_HEADS, KV_HEADS)
    modules = [projected(*one) for one in zip(given, heads, bias, strict=False)] + [output(o, bias[3])]
    x = torch.randn(SEQ, HIDDEN, dtype=torch.float64)
    expected = plain(modules, x)
    parts = packed(modules, cache=cache, rotary=rotary)
    assert relative_error(of_parts(parts, x), expected) < 1e-10
    # Their parameters say what they said, whether or not they are views now.
    assert relative_error(plain(modules, x), expected) < 1e-12
    assert len(parts.first) % 8 == 0 and parts.first.is_contiguous()
    assert all(len(factor) % 8 == 0 for factor in parts.out[:-1])
    for one in (parts.q, parts.k, parts.v):
        assert one.at % 8 == 0 and (one.u is None or all(rank % 8 == 0 for rank in one.layout.ranks))
    narrow = [
        isinstance(one, list) and max(one[:count]) < HEAD_DIM for one, count in zip(given, heads, strict=True)
    ]
    assert (parts.v.u is None and given[2] is not None) == (cache == "rank" and narrow[2])
    if cache == "dense" or rotary:
        assert parts.q.width == parts.k.width == HEAD_DIM
    assert parts.q.width == parts.k.width <= HEAD_DIM and parts.v.width <= HEAD_DIM


def test_rank_space_takes_the_largest_rank_of_the_layer_for_every_head() -> None:
    # In heads of 32 columns, so that one of 9 is padded to 16 and one of 17 to 24.
    modules = [
        filled(HeadLowRankLinear(32, HIDDEN, HeadLayout(ranks), True))
        for ranks in ((9, 2, 3, 4), (3, 9), (1, 17))
    ]
    modules.append(filled(LowRankLinear(HIDDEN, HEADS * 32, 6, True)))
    parts = packed(modules, cache="rank", head_dim=32)
    assert (parts.q.width, parts.k.width, parts.v.width) == (16, 16, 24)
    assert (parts.q.columns, parts.k.columns, parts.v.columns) == (4 * 16, 2 * 16, 2 * 24)
    turned = packed(modules, cache="rank", head_dim=32, rotary=True)
    assert (turned.q.width, turned.k.width, turned.v.width) == (32, 32, 24)
    normed = packed(modules, cache="rank", head_dim=32, head_norms=True)
    assert (normed.q.width, normed.k.width, normed.v.width) == (32, 32, 24)


@pytest.mark.parametrize(("rank", "products"), [(2, 2), (HIDDEN - 1, 1)])
def test_the_output_is_one_product_where_two_would_be_hardly_less(rank: int, products: int) -> None:
    modules = [projected([3, 5, 2, 4], heads, True) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    assert len(packed([*modules, output(rank, True)], cache="rank").out) == products
    assert len(packed([*modules, output(rank, True)], cache="dense").out) == 2


@pytest.mark.parametrize("forgotten", ["first_bias", "out_bias", "v", "q", "scale"])
def test_what_is_forgotten_is_seen(forgotten: str) -> None:
    torch.manual_seed(0)
    # q is dense, so that first_bias holds its bias.
    modules = [projected(given, heads, True) for given, heads in ((None, HEADS), ([5, 3], 2), ([4, 7], 2))]
    modules.append(output(10, True))
    x = torch.randn(SEQ, HIDDEN, dtype=torch.float64)
    parts = packed(modules)
    change: dict[str, Any] = {
        "first_bias": None,
        "out_bias": None,
        "v": replace(parts.v, bias=None),
        "q": replace(parts.q, at=parts.q.at + 1),
        "scale": 1.1 * parts.scale,
    }
    wrong = replace(parts, **{forgotten: change[forgotten]})
    assert relative_error(of_parts(wrong, x), plain(modules, x)) > 1e-3


def inside(part: torch.Tensor, whole: torch.Tensor) -> bool:
    return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def test_factors_that_need_no_padding_exist_once() -> None:
    q, k, v = projected([8, 16, 8, 8], HEADS, False), projected([9, 8], 2, False), projected(16, 2, True)
    o = output(8, False)
    parts = packed([q, k, v, o])
    assert isinstance(q, HeadLowRankLinear) and isinstance(v, HeadLowRankLinear)
    assert inside(q.V, parts.first) and not inside(k.V, parts.first) and inside(v.V, parts.first)  # type: ignore[arg-type]
    assert parts.q.u is not None and inside(q.U, parts.q.u) and inside(o.V, parts.out[0])  # type: ignore[arg-type]
    # Padded as a whole, they are the first rows and columns of what is packed.
    v, o, dense = projected(13, 2, False), output(5, False), projected(None, HEADS, False)
    parts = packed([dense, k, v, o])
    assert inside(v.V, parts.first) and inside(dense.weight, parts.first)  # type: ignore[arg-type]
    assert inside(o.V, parts.out[0]) and inside(o.U, parts.out[1])  # type: ignore[arg-type]


def test_what_was_packed_is_packed_again_where_it_is() -> None:
    modules = [projected([8] * HEADS, HEADS, True), projected(16, 2, True), projected(None, 2, True)]
    modules.append(output(8, True))
    once = packed(modules)
    twice = packed(modules)
    assert once.first.data_ptr() == twice.first.data_ptr() and torch.equal(once.first, twice.first)
    parts = [torch.randn(2, 3), torch.randn(4, 3)]
    assert torch.equal(joined(parts), torch.cat(parts))
    whole = torch.randn(7, 3)
    assert joined([whole[1:3], whole[3:7]]).data_ptr() == whole[1:].data_ptr()
    for apart in ([whole[:3], whole[4:]], [whole[:3], whole.clone()[3:]], [whole[3:], whole[:3]]):
        assert torch.equal(joined(apart), torch.cat(apart)) and not inside(joined(apart), whole)


@pytest.mark.parametrize("rank", [1, 7, 8])
def test_padded_factors_make_the_same_matrix(rank: int) -> None:
    module = output(rank, False)
    before = module(torch.eye(HEADS * HEAD_DIM, dtype=torch.float64))
    found = factors_of(module)
    assert found is not None and len(found[0]) == found[1].shape[1] == 8
    assert relative_error((found[1] @ found[0]).T, before) < 1e-12
    assert relative_error(module(torch.eye(HEADS * HEAD_DIM, dtype=torch.float64)), before) < 1e-12
    assert factors_of(nn.Linear(3, 4)) is None


@pytest.mark.parametrize("given", [None, 11, [8, 8, 3, 5]], ids=str)
def test_some_heads_are_some_of_the_heads(given: int | list[int] | None) -> None:
    modules = [projected(given, HEADS, True), projected(None, 2, True), projected(None, 2, True)]
    parts = packed([*modules, output(8, True)])
    p = torch.randn(2, SEQ, len(parts.first), dtype=torch.float64)
    whole = made_heads(p, parts.q)
    assert some_heads(parts.q, 0, HEADS) is parts.q
    for first, last in ((0, 1), (1, 3), (2, 4)):
        columns = slice(first * HEAD_DIM, last * HEAD_DIM)
        some = some_heads(parts.q, first, last)
        assert relative_error(made_heads(p, some), whole[..., columns]) < 1e-12
        # Written to rows of a wider batch, from a product without the first eight columns of P.
        out = torch.zeros(4, SEQ, some.heads * HEAD_DIM, dtype=torch.float64)
        made_heads(p, replace(some, at=some.at + 8), shift=8, out=out[1:3])
        assert relative_error(out[1:3], whole[..., columns]) < 1e-12
        assert not out[0].any() and not out[3].any()
        angles = torch.randn(1, SEQ, HEAD_DIM // 2, dtype=torch.float64).repeat(1, 1, 2)
        rotation = (angles.cos(), angles.sin())
        expected = whole[..., columns].clone()
        turn(expected, last - first, rotation, None)
        assert relative_error(turned_heads(p, some, rotation), expected) < 1e-12
