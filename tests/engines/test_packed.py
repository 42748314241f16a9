"""q and k rebuilt side by side from one product with v: the same heads, and no factor twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from flashsvd.engines.build import build
from flashsvd.engines.modules import HeadLowRankLinear
from flashsvd.engines.packed import factored_per_head, pack_heads
from flashsvd.factors import factorise
from flashsvd.kernels.gate import relative_error
from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.rebuild import rebuild_rotated
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute

HEAD_DIM, HIDDEN = 16, 48


def module(ranks: tuple[int, ...], bias: bool, shared: bool = False) -> HeadLowRankLinear:
    made = HeadLowRankLinear(HEAD_DIM, HIDDEN, HeadLayout(ranks, shared=shared), bias)
    for parameter in made.parameters():
        parameter.data.normal_()
    return made


@pytest.mark.parametrize("bias", [(False, False), (True, True), (False, True)], ids=str)
@pytest.mark.parametrize(
    ("q_ranks", "k_ranks", "runs"),
    [((8, 8), (8, 8), 1), ((5, 5), (5, 5), 1), ((5, 9, 9), (16,), 2), ((1, 8), (17, 8), 3)],
)
def test_the_heads_are_those_of_the_modules(
    q_ranks: tuple[int, ...], k_ranks: tuple[int, ...], runs: int, bias: tuple[bool, bool]
) -> None:
    torch.manual_seed(len(q_ranks))
    q, k = (module(ranks, one) for ranks, one in zip((q_ranks, k_ranks), bias, strict=True))
    v, x = torch.randn(24, HIDDEN), torch.randn(2, 7, HIDDEN)
    expected = torch.cat([q(x), k(x)], -1)
    packed = pack_heads(q, k, v)
    assert len(packed.runs) == runs
    p = linear(x, packed.first)
    # A turn by no angle.
    still = torch.ones(1, 7, HEAD_DIM), torch.zeros(1, 7, HEAD_DIM)
    heads = rebuild_rotated(p, packed.second, packed.bias, *still, runs=packed.runs)
    assert relative_error(heads, expected) < 1e-6
    assert torch.equal(packed.first[-24:], v)
    # Their parameters say what they said, whether or not they are views now.
    assert relative_error(torch.cat([q(x), k(x)], -1), expected) < 1e-6


def test_factors_that_need_no_padding_exist_once() -> None:
    q, k = module((8, 16), False), module((8, 9), False)
    packed = pack_heads(q, k, torch.randn(8, HIDDEN))

    def inside(part: torch.Tensor, whole: torch.Tensor) -> bool:
        return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()

    assert inside(q.V, packed.first) and inside(q.U, packed.second)
    assert not inside(k.V, packed.first) and not inside(k.U, packed.second)


def test_only_factors_of_every_head_are_packed() -> None:
    assert factored_per_head(module((8, 8), False))
    assert not factored_per_head(module((8, 8), False, shared=True))
    assert not factored_per_head(nn.Linear(HIDDEN, 32))


@pytest.mark.parametrize("text", ["*.qkv: 9", "*.q: 8 *.k: 8 L2.q: 5 L1.k.h2: 16", "*.q: 8 *.v: 7", "*.v: 7"])
def test_rotary_attention_is_that_of_lowrank(
    family_model: Callable[..., LoadedModel], text: str, answer: Callable[..., torch.Tensor]
) -> None:
    """Packed, with a rank per head, and not packed, as where k is dense."""
    loaded = family_model("modernbert", dtype=torch.float32, attention_bias=True)
    plan = RankPlan.from_text(loaded.shape, text)
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    lowrank, flash = (build(loaded, name, factors, plan) for name in ("lowrank", "flash"))
    ids = torch.randint(2, 120, (3, 21), generator=torch.Generator().manual_seed(4))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids).index_fill_(1, torch.tensor([20]), 0)}
    assert relative_error(answer(flash, given), answer(lowrank, given)) < 2e-6
