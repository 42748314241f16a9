"""What a runtime says of its prefill."""

from __future__ import annotations

import pytest
import torch

from flashsvd.engines import causal
from flashsvd.kernels.attention.choice import Choice
from tests.decoding.small_runtimes import IDS, PLANS, small
from tests.small_decoders import Decoder


def test_a_plan_is_of_the_last_prompt(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_tokens(batch: int, seq: int, *_: object, **__: object) -> Choice:
        return Choice("rebuild on chip", batch, seq, 0)

    monkeypatch.setattr(causal, "kept_choice", of_tokens)
    runtime = small(decoder("llama", dtype=torch.float32), PLANS[0]).runtime("flash", context=40)
    words = "rebuild once: {} us predicted with 0 MiB of heads, 9 us on chip, but the cache keeps heads (3 layers)"
    # Three layers of 3 sequences: the full context, then 9 tokens, then 5.
    assert runtime.plan == words.format(3 * 40)
    runtime.prefill(IDS)
    assert runtime.plan == words.format(3 * 9)
    runtime.step(torch.tensor([4, 5, 6]))
    assert runtime.plan == words.format(3 * 9)
    runtime.prefill(IDS[:, :5])
    assert runtime.plan == words.format(3 * 5)


@pytest.mark.parametrize("engine", ["dense", "lowrank", "flash", "flash, cache in rank space"])
def test_every_engine_has_a_plan(decoder: Decoder, engine: str) -> None:
    runtime = small(decoder("gpt2", dtype=torch.float32), PLANS[0]).runtime(engine, context=40)
    expected = {
        "flash": "rebuild once: ",
        "flash, cache in rank space": "nothing to rebuild: q, k and v are dense or in rank space (3 layers)",
    }.get(engine, "heads as transformers makes them, attention 'sdpa'")
    assert runtime.plan.startswith(expected)
