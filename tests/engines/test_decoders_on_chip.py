"""Decoders without a cache: heads that are rebuilt on chip where the cost model says so, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flashsvd.engines import causal, sublayer
from flashsvd.engines.build import build
from flashsvd.engines.decoder import prefill_words
from flashsvd.factors import factorise
from flashsvd.kernels.attention.choice import Choice, How, prefill_choice
from flashsvd.kernels.gate import relative_error
from flashsvd.kernels.layout import Projection
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute
from tests.small_decoders import Decoder

IDS = torch.randint(2, 50, (4, 21), generator=torch.Generator().manual_seed(8))
LEFT = torch.ones_like(IDS)
LEFT[1, :6], LEFT[2, :1] = 0, 0
Choose = Callable[[How], list[str]]
# A rank for all, and one for every head, none a multiple of 8.
PLANS = ("*.qkv: 5 *.o: 20", "*.q: 9 L1.q.h2: 3 *.k: 7 *.v: 12 L2.v: 3 *.o: 33")
# Grouped and turned; neither; a window of 5 tokens, with one kv head for all.
FAMILIES = ("llama", "gpt2", "mistral")


def flash(loaded: LoadedModel, text: str, engine: str = "flash", **options: Any) -> Any:
    plan = RankPlan.from_text(loaded.shape, text)
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    return build(loaded, engine, factors, plan, **options)


@torch.inference_mode()
def scored(model: Any, mask: torch.Tensor | None = None, rows: int = 4) -> torch.Tensor:
    """Logits of the tokens that are no padding, without a cache."""
    ids, given = IDS[:rows].to(model.device), {}
    if mask is not None:
        mask = mask[:rows]
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        given = {"attention_mask": mask.to(model.device), "position_ids": positions.to(model.device)}
    found = model(ids, use_cache=False, **given).logits.cpu()
    assert found.isfinite().all()
    return found if mask is None else found[mask.bool()]


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Choose:
    """choose(how): from now on the cost model says this; gives the ops that then run."""
    ran: list[str] = []
    for name in ("flash_svd_attention", "attend"):
        real = getattr(causal, name)

        def run(*given: Any, real: Any = real, name: str = name, **options: Any) -> torch.Tensor:
            ran.append(name)
            return real(*given, **options)

        monkeypatch.setattr(causal, name, run)

    def say(how: How) -> list[str]:
        monkeypatch.setattr(causal, "kept_choice", lambda *_, **__: Choice(how, 3.0, 4.0, 1 << 20))
        ran.clear()
        return ran

    return say


def both(model: Any, choose: Choose, mask: torch.Tensor | None) -> list[torch.Tensor]:
    found = []
    ways: dict[How, str] = {"rebuild once": "attend", "rebuild on chip": "flash_svd_attention"}
    for how, op in ways.items():
        ran = choose(how)
        found.append(scored(model, mask))
        assert set(ran) == {op}
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", [*PLANS, "whole matrices"])
@pytest.mark.parametrize("mask", [None, LEFT], ids=["unpadded", "left-padded"])
def test_both_ways_give_the_same(
    decoder: Decoder,
    choose: Choose,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    text: str,
    mask: torch.Tensor | None,
) -> None:
    per_head, plan = text in PLANS, text if text in PLANS else "*.q: 19 *.k: 11 *.v: 12 *.o: 20"
    single = flash(decoder(family, per_head, torch.float32), plan)
    lowrank = flash(decoder(family, per_head), plan, "lowrank")
    wide = flash(decoder(family, per_head), plan)
    expected = scored(lowrank, mask)
    once, on_chip = both(single, choose, mask)
    # In float32 it is no further from float64 than twice what rebuilding once is.
    assert relative_error(on_chip, expected) < 2 * max(relative_error(once, expected), 1e-7)
    once, on_chip = both(wide, choose, mask)
    assert relative_error(on_chip, once) < 1e-12
    # Slices of the batch and groups of heads change nothing.
    monkeypatch.setattr(sublayer, "SLICE_SHARE", 0.2)
    for least in (30, 1):
        monkeypatch.setitem(sublayer.LEAST_TOKENS, "cpu", least)
        ran = choose("rebuild on chip")
        assert relative_error(scored(wide, mask), on_chip) < 1e-12
        assert set(ran) == {"flash_svd_attention"} and len(ran) > 3
    # Every sequence of three layers, and less than all heads of it where there are several.
    assert len(ran) == 12 if family == "mistral" else len(ran) > 12


BROKEN: dict[str, dict[str, Any]] = {
    "no window": {"window": None},
    "a window of one more": {"window": 5},
    "no mask": {"key_mask": None},
    "no turn": {"rotation": None},
    "both sides": {"causal": False},
    "a scale of its own": {"scale": 0.2},
}
MISREAD: dict[str, Callable[[Projection], Projection]] = {
    "no bias": lambda one: one._replace(bias=None),
    "another head's factor": lambda one: one._replace(u=one.u.roll(one.layout.ranks[0], 0)),  # type: ignore[union-attr]
}


@pytest.mark.parametrize("broken", [*BROKEN, *MISREAD])
def test_what_is_not_passed_on_is_seen(
    decoder: Decoder, choose: Choose, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    # Biases of q, k and v, and a window of 4 tokens behind the query in all layers but the first.
    model = flash(decoder("qwen2"), PLANS[0])
    once, on_chip = both(model, choose, LEFT)
    assert relative_error(on_chip, once) < 1e-12
    real = causal.flash_svd_attention

    def wrong(q: Projection, k: Projection, v: Projection, **settings: Any) -> torch.Tensor:
        misread = MISREAD.get(broken, lambda one: one)
        return real(misread(q), misread(k), misread(v), **(settings | BROKEN.get(broken, {})))

    monkeypatch.setattr(causal, "flash_svd_attention", wrong)
    assert relative_error(scored(model, LEFT), once) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_the_kernel_computes_the_same(decoder: Decoder, choose: Choose, family: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = "triton" if device == "cuda" else "interpret"
    loaded = decoder(family, dtype=torch.float32, num_hidden_layers=2, device=device)
    model = flash(loaded, PLANS[0], backend=backend)
    expected = scored(flash(loaded, PLANS[0], "lowrank"), LEFT, rows=2)
    ran = choose("rebuild on chip")
    assert relative_error(scored(model, LEFT, rows=2), expected) < 1e-5
    assert ran == ["flash_svd_attention"] * 2


def test_a_cache_is_given_heads_whatever_is_predicted(decoder: Decoder, choose: Choose) -> None:
    loaded = decoder("llama")
    model = flash(loaded, PLANS[0])
    ran = choose("rebuild on chip")
    held = model(IDS, use_cache=True).past_key_values
    assert set(ran) == {"attend"} and held.layers[0].keys.shape == (4, 2, 21, 24)
    assert prefill_words(model, 4, 21) == (
        "rebuild once: 12 us predicted with 1 MiB of heads, 9 us on chip, but the cache keeps heads (3 layers)"
    )
    assert prefill_words(model, 4, 21, cached=False) == (
        "rebuild on chip: 9 us predicted, 12 us rebuilt once with 1 MiB of heads (3 layers)"
    )
    choose("rebuild once")
    for cached in (True, False):
        assert prefill_words(model, 4, 21, cached) == (
            "rebuild once: 12 us predicted with 1 MiB of heads, 9 us on chip (3 layers)"
        )


def test_the_model_is_asked_for_what_runs(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def look(*sizes: Any, **rest: Any) -> Choice:
        asked.append((*sizes[:6], rest["window"], rest["rotary"]))
        return prefill_choice(*sizes, **rest)

    monkeypatch.setattr(causal, "kept_choice", look)
    for family in FAMILIES:
        scored(flash(decoder(family), PLANS[0]))
    assert asked[::3] == [
        (4, 21, 0, 4, 2, 24, None, True),
        (4, 21, 0, 4, 4, 16, None, False),
        (4, 21, 0, 4, 1, 16, 4, True),
    ]
    assert len(asked) == 9


def test_where_nothing_is_to_be_chosen_it_says_why(decoder: Decoder, choose: Choose) -> None:
    ran = choose("rebuild on chip")
    loaded = decoder("qwen3")
    normed = flash(loaded, PLANS[0])
    half = flash(decoder("llama"), "*.q: 9 L1.k: 7 L1.v: 7")
    rank = flash(decoder("gpt2"), PLANS[0], cache="rank")
    for model in (normed, rank):
        scored(model)
    assert set(ran) == {"attend"}
    assert prefill_words(normed, 4, 21) == "rebuild once: q and k go through norms (3 layers)"
    assert prefill_words(rank, 4, 21) == (
        "nothing to rebuild: q, k and v are dense or in rank space (3 layers)"
    )
    assert prefill_words(half, 4, 21, cached=False) == (
        "rebuild once, and only q: the rest is dense or in rank space (2 of 3 layers); "
        "rebuild on chip: 3 us predicted, 4 us rebuilt once with 1 MiB of heads (1 of 3 layers)"
    )
    scored(half)
    assert ran.count("flash_svd_attention") == 1
    assert prefill_words(loaded.model, 4, 21) == "heads as transformers makes them, attention 'sdpa'"
