"""Logits: a prompt and tokens one by one give what one forward of transformers gives, by the gate of the kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flashsvd.decoding.runtime import Runtime
from flashsvd.factors import factorise
from flashsvd.kernels.gate import assert_close, relative_error
from flashsvd.kernels.step import Attend, Heads, Rows, naive
from flashsvd.methods import method_named
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute
from flashsvd.stats.collect import collect
from tests.decoding.small_runtimes import COMPRESSED, LEFT, PLANS, Small, all_logits, small, stepped
from tests.small_decoders import Decoder, every_decoder

IDS = torch.randint(2, 50, (3, 17), generator=torch.Generator().manual_seed(9))
MASK = torch.cat([LEFT, torch.ones(3, 8, dtype=torch.bool)], 1)
PROMPT = 9


def assert_as_one_forward(model: Small, engine: str, mask: torch.Tensor | None, **options: Any) -> None:
    """The step's logits pass the gate: no further from the same weights in fp64 than twice transformers in fp32."""
    plain = model.reference(engine)
    exact = copy.deepcopy(plain).double()
    ids = IDS if mask is not None else IDS[:1]
    expected, baseline = (all_logits(one, ids, mask)[:, PROMPT - 1 :] for one in (exact, plain))
    found = stepped(model.runtime(engine, batch=len(ids), **options), ids, mask, PROMPT)
    assert_close(found, expected, baseline, engine)


@every_decoder
@pytest.mark.parametrize("mask", [None, MASK], ids=["one prompt", "padded"])
def test_the_dense_model(decoder: Decoder, family: str, mask: torch.Tensor | None) -> None:
    assert_as_one_forward(small(decoder(family, dtype=torch.float32)), "dense", mask)


@every_decoder
@pytest.mark.parametrize("plan", PLANS)
def test_cut_ranks(decoder: Decoder, family: str, plan: str) -> None:
    model = small(decoder(family, dtype=torch.float32), plan)
    for engine in COMPRESSED:
        assert_as_one_forward(model, engine, MASK)


@every_decoder
def test_cut_ranks_of_one_sequence(decoder: Decoder, family: str) -> None:
    model = small(decoder(family, dtype=torch.float32), PLANS[1])
    for engine in COMPRESSED:
        assert_as_one_forward(model, engine, None)


@every_decoder
def test_whole_matrices(decoder: Decoder, family: str) -> None:
    loaded = decoder(family, per_head=False, dtype=torch.float32)
    model = small(loaded, "*.q: 19 *.k: 11 L1.v: 13 *.o: 20 *.up: 20 L2.down: 9")
    for engine in COMPRESSED:
        assert_as_one_forward(model, engine, MASK)


@pytest.mark.parametrize("method", ["basis_sharing", "whiten:centred"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_that_share_a_basis_and_factors_with_biases(
    decoder: Decoder, family: str, method: str, tmp_path: Path
) -> None:
    how = method_named(method)
    loaded = decoder(family, per_head=how.group == 1, dtype=torch.float32)
    statistics = collect(loaded, [{"input_ids": IDS}], how.needs, cache=tmp_path)
    spectra = compute(loaded, how, statistics)
    # Of gate and up one is factored: a centred method gives it a bias, and the other has none.
    plan = RankPlan.from_text(spectra.shape, "*.q: 16 *.k: 16 *.v: 16 *.up: 16 L1.o: 8")
    model = Small(loaded, plan, factorise(loaded, spectra, plan))
    for engine in COMPRESSED:
        assert_as_one_forward(model, engine, MASK)


def inner(runtime: Runtime, kind: type, holds: Callable[[Any], Any] = bool) -> Any:
    """The first instruction of a kind after the first attention of which something holds."""
    steps = runtime._step.program.instructions
    start = next(place for place, step in enumerate(steps) if isinstance(step, Attend)) + 1
    return next(step for step in steps[start:] if isinstance(step, kind) and holds(step))


def changed(step: Any, **fields: Any) -> None:
    for name, value in fields.items():
        object.__setattr__(step, name, value)


def next_head(runtime: Runtime) -> None:
    factor = inner(runtime, Heads).factors[0]
    changed(factor, column=factor.column + 8)


BUGS: dict[str, tuple[str, Callable[[Runtime], Any]]] = {
    "a window one wider": ("mistral", lambda run: changed(inner(run, Attend), window=5)),
    "a window one narrower": ("mistral", lambda run: changed(inner(run, Attend), window=3)),
    "a lost key": ("llama", lambda run: run._cache.of_layer(1)[0][:, :, 5].zero_()),
    "a lost value": ("gpt2", lambda run: run._cache.of_layer(1)[1][:, :, 5].zero_()),
    "a place too far": ("llama", lambda run: run._step.place.add_(1)),
    "padding that is seen": ("gpt2", lambda run: run._step.first.sub_(1).clamp_(min=0)),
    "no norm of q": ("qwen3", lambda run: changed(inner(run, Attend), q_norm=None)),
    "no biases": ("qwen2", lambda run: changed(inner(run, Attend), bias=None)),
    "another scale": ("opt", lambda run: changed(inner(run, Attend), scale=0.3)),
    "another column of P": ("llama", next_head),
    "no residual": (
        "llama",
        lambda run: changed(inner(run, Rows, lambda step: step.added is not None), added=None),
    ),
    "a stale norm": ("llama", lambda run: changed(inner(run, Rows, lambda step: step.next), next=None)),
    "no norm": (
        "llama",
        lambda run: changed(inner(run, Rows, lambda step: step.product.normed).product, normed=None),
    ),
    "no gate": ("llama", lambda run: changed(inner(run, Rows, lambda step: step.up), up=None)),
    "no activation": (
        "opt",
        lambda run: changed(inner(run, Rows, lambda step: step.activated), activated=False),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_seen(decoder: Decoder, bug: str) -> None:
    family, plant = BUGS[bug]
    runtime = small(decoder(family, dtype=torch.float32), PLANS[0]).runtime("flash")
    expected = stepped(runtime, IDS, MASK, PROMPT)[:, 1:]
    runtime.prefill(IDS[:, :PROMPT], MASK[:, :PROMPT])
    plant(runtime)
    found = torch.stack([runtime.step(IDS[:, place]).clone() for place in range(PROMPT, IDS.shape[1])], 1)
    # A hundred times what passes.
    assert relative_error(found, expected) > 1e-3


def test_keys_that_are_not_turned_are_seen(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small(decoder("llama", dtype=torch.float32), PLANS[0]).runtime("flash")
    expected = stepped(runtime, IDS, MASK, PROMPT)
    turned = naive._turned
    monkeypatch.setattr(naive, "_turned", lambda x, *rest: x if x.shape[1] == 2 else turned(x, *rest))
    assert relative_error(stepped(runtime, IDS, MASK, PROMPT), expected) > 1e-3
