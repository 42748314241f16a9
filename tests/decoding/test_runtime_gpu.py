"""The runtime on a GPU: steps in a graph write what transformers writes, wait for nothing and allocate nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from flashsvd.decoding.runtime import Runtime
from flashsvd.decoding.sampling import Sampling
from flashsvd.kernels.gate import BASELINE_FACTOR, relative_error
from flashsvd.kernels.step import MOST_ROWS
from tests.decoding.small_runtimes import (
    ENGINES,
    IDS,
    LEFT,
    PLANS,
    Small,
    all_logits,
    small,
    stepped,
    written,
)
from tests.small_decoders import Decoder, every_decoder

pytestmark = pytest.mark.gpu
every_engine = pytest.mark.parametrize("engine", ENGINES)


def on_gpu(decoder: Decoder, family: str, dtype: torch.dtype = torch.float32, **sizes: Any) -> Small:
    return small(decoder(family, dtype=dtype, device="cuda", **sizes), PLANS[1])


def ids() -> torch.Tensor:
    return IDS.cuda()


def left() -> torch.Tensor:
    return LEFT.cuda()


@every_decoder
@every_engine
def test_the_same_64_tokens_as_transformers(decoder: Decoder, family: str, engine: str) -> None:
    model = on_gpu(decoder, family)
    runtime = model.runtime(engine)
    found = runtime.generate(ids(), left(), max_new_tokens=64).tokens
    assert found.device.type == "cpu" and len(found.unique()) > 5
    assert torch.equal(found, written(model.reference(engine), ids(), left(), 64).cpu())
    assert runtime.launches is not None and runtime.launches > 10


@every_decoder
@every_engine
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_graph_gives_the_bits_of_its_kernels(
    decoder: Decoder, family: str, engine: str, dtype: torch.dtype
) -> None:
    model = on_gpu(decoder, family, dtype)
    text = torch.cat([ids(), ids().flip(1)], 1)
    mask = torch.cat([left(), torch.ones_like(left())], 1)
    graphed, plain = (
        stepped(model.runtime(engine, **options), text, mask, 9) for options in ({}, {"graph": False})
    )
    assert torch.equal(graphed, plain)
    own = model.reference(engine)
    exact = all_logits(copy.deepcopy(own).double(), text, mask)[:, 8:]
    usual = relative_error(all_logits(own, text, mask)[:, 8:], exact)
    # Roundings of all layers add up to more than one op may have.
    assert relative_error(graphed, exact) <= BASELINE_FACTOR * usual


@every_engine
def test_rewinding_and_prompts_after_one_another_use_the_same_graph(decoder: Decoder, engine: str) -> None:
    runtime = on_gpu(decoder, "llama").runtime(engine)
    first = runtime.generate(ids(), left(), max_new_tokens=20).tokens
    graph = runtime._graph
    runtime.generate(ids().flip(1), max_new_tokens=30)
    assert torch.equal(runtime.generate(ids(), left(), max_new_tokens=20).tokens, first)
    runtime.rewind(12)
    again = [first[:, 3]]
    for _ in range(4):
        again.append(runtime.step(again[-1].cuda()).argmax(-1).cpu())
    assert torch.equal(torch.stack(again, 1), first[:, 3:8]) and runtime._graph is graph


@pytest.mark.parametrize("engine", ENGINES[2:])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_prompts_of_a_bucket_replay_one_graph(decoder: Decoder, family: str, engine: str) -> None:
    """Of other lengths than the one that it was captured for, and after steps that wrote over the padding."""
    model = on_gpu(decoder, family)
    runtime, plain = model.runtime(engine), model.runtime(engine, graph=False)
    text = torch.randint(2, 50, (3, 70), generator=torch.Generator().manual_seed(3)).cuda()
    for seq in (40, 33, 64, 1, 70, 66, 40):
        found, expected = (run.prefill(text[:, :seq]) for run in (runtime, plain))
        assert runtime.length == seq and relative_error(found, expected.double()) < 1e-5
        for _ in range(5):
            token = expected.argmax(-1)
            found, expected = runtime.step(token), plain.step(token)
            assert relative_error(found, expected.double()) < 1e-5
    assert list(runtime._prompts._graphs) == [80, 64] and runtime.prompt_bytes > 0
    # Padding on the left goes through the forward.
    assert torch.equal(runtime.prefill(ids(), left()), plain.prefill(ids(), left()))


def test_a_dense_model_reads_prompts_by_its_own_forward(decoder: Decoder) -> None:
    runtime = on_gpu(decoder, "llama").runtime("dense")
    for _ in range(3):
        runtime.prefill(ids())
    assert not runtime._prompts._graphs and runtime.prompt_bytes == 0


def test_steps_wait_for_nothing_and_allocate_nothing(decoder: Decoder) -> None:
    runtime = on_gpu(decoder, "llama", torch.bfloat16).runtime("flash")
    tokens = runtime.prefill(ids(), left()).argmax(-1)
    runtime.step(tokens)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            runtime.step(tokens)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() == held


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0, "top_k": 5}, {"temperature": 2.0, "top_p": 0.9}], ids=str
)
def test_generating_copies_tokens_while_the_next_step_runs(
    decoder: Decoder, settings: dict[str, Any]
) -> None:
    runtime = on_gpu(decoder, "qwen3", torch.bfloat16).runtime("flash")
    told: list[list[int]] = []
    how = Sampling(**settings, seed=4)
    found = runtime.generate(ids(), left(), max_new_tokens=24, sampling=how, on_token=told.append)
    assert found.tokens.T.tolist() == told
    assert torch.equal(runtime.generate(ids(), left(), max_new_tokens=24, sampling=how).tokens, found.tokens)


@pytest.mark.parametrize("batch", [1, 16, MOST_ROWS])
def test_batches_up_to_the_largest_write_the_same(decoder: Decoder, batch: int) -> None:
    model = on_gpu(decoder, "llama")
    prompts = torch.randint(2, 50, (batch, 9), generator=torch.Generator().manual_seed(1)).cuda()
    found = model.runtime("flash", batch=batch).generate(prompts, max_new_tokens=24).tokens
    assert torch.equal(found, written(model.reference("flash"), prompts, None, 24).cpu())


def test_a_batch_above_the_largest_is_refused(decoder: Decoder) -> None:
    loaded = decoder("llama", dtype=torch.float32, device="cuda")
    with pytest.raises(ValueError, match="batch must be at most 64, got 65: write in several batches"):
        Runtime(loaded, loaded.model, loaded.shape, batch=MOST_ROWS + 1, context=20)
