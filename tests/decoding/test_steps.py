"""The program of a step: which memory it names, and that kernels that leave parts of it untouched read no old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from flashsvd.decoding.runtime import Runtime
from flashsvd.decoding.steps import _Writer
from flashsvd.kernels.gate import relative_error
from flashsvd.kernels.step import Attend, Embed, Heads, Rows, launch
from flashsvd.models.load import LoadedModel
from tests.decoding.small_runtimes import COMPRESSED, ENGINES, IDS, LEFT, all_logits, small
from tests.small_decoders import Decoder, every_decoder

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 24,
}


@pytest.fixture
def tiny_decoder(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LoadedModel]:
    """decoder(family, **sizes) on the GPU, or where kernels are interpreted, which takes few programs."""
    monkeypatch.setattr(launch, "INTERPRETED", launch.INTERPRETED._replace(multiprocessors=3))

    def model(family: str, **sizes: Any) -> LoadedModel:
        own = {"gpt2": {"n_inner": 48}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32}}.get(family, {})
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = decoder(family, dtype=torch.float32, device=device, **{**TINY, **own, **sizes})
        for parameter in loaded.model.parameters():
            # Files that are mapped into memory start tensors anywhere.
            parameter.data = parameter.data.clone()
        return loaded

    return model


def by_kernels(model: Any, engine: str, batch: int) -> tuple[Runtime, torch.Tensor, torch.Tensor]:
    """A runtime whose steps are kernels, the logits of two steps, and those of one forward."""
    backend = "triton" if torch.cuda.is_available() else "interpret"
    runtime = model.runtime(engine, batch=batch, context=16, backend=backend)
    device = model.loaded.device
    ids, mask = IDS[:batch].to(device) % 24, LEFT[:batch].to(device)
    runtime.prefill(ids[:, :7], mask[:, :7])
    found = torch.stack([runtime.step(ids[:, place]).clone() for place in (7, 8)], 1)
    return runtime, found, all_logits(model.reference(engine), ids, mask)[:, 7:]


@pytest.mark.parametrize(
    ("family", "batch"), [("gpt2", 1), ("qwen2", 1), ("llama", 2), ("mistral", 2), ("qwen3", 2), ("opt", 2)]
)
def test_kernels_take_what_is_written(
    tiny_decoder: Callable[..., LoadedModel], family: str, batch: int
) -> None:
    """Every slot of every family once dense and once factored, in the kernels."""
    engine = "flash" if batch == 1 else "flash, cache in rank space"
    model = small(
        tiny_decoder(family), "L1.q: 5 L1.v: 7 L2.k: 3 L2.v: 9 *.o: 20 L1.up: 16 L2.gate: 8 L2.down: 12"
    )
    _, found, expected = by_kernels(model, engine, batch)
    assert relative_error(found, expected) < 5e-6


def test_dense_models_are_run_by_the_kernels_too(tiny_decoder: Callable[..., LoadedModel]) -> None:
    for family in ("gpt2", "qwen3"):
        _, found, expected = by_kernels(small(tiny_decoder(family)), "dense", 2)
        assert relative_error(found, expected) < 5e-6


RISING = "L1.qkv: 20 L2.qkv: 8"


def heads_of(runtime: Runtime) -> list[torch.Tensor]:
    return [step.out for step in runtime._step.program.instructions if isinstance(step, Heads)]


@pytest.mark.parametrize("planted", [False, True], ids=["", "one memory for all layers"])
def test_what_a_layer_of_high_ranks_leaves_is_not_read_by_one_of_low_ranks(
    tiny_decoder: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch, planted: bool
) -> None:
    if planted:
        monkeypatch.setattr(
            _Writer, "_heads", lambda self, sides, columns: self._fp32("heads", 4, self._batch, columns)
        )
    model = small(tiny_decoder("llama", head_dim=32, num_key_value_heads=1, hidden_size=64), RISING)
    runtime, found, expected = by_kernels(model, "flash", 2)
    high, low = heads_of(runtime)
    assert (high.data_ptr() == low.data_ptr()) == planted
    error = relative_error(found, expected)
    assert error > 1e-2 if planted else error < 5e-6


def test_layers_of_like_ranks_use_the_same_memory(decoder: Decoder) -> None:
    loaded = decoder("llama", dtype=torch.float32)
    for text, count in (("*.qkv: 5", 1), ("L1.qkv: 5 L2.qkv: 7 L3.qkv: 15", 2), ("*.q: 5 L2.k: 5", 2)):
        places = {out.data_ptr() for out in heads_of(small(loaded, text).runtime("flash"))}
        assert len(places) == count
    # Every instruction but those reads and writes the same few buffers in all layers.
    few, many = (decoder("llama", dtype=torch.float32, num_hidden_layers=count) for count in (2, 6))
    sizes = [small(one, "*.qkv: 5 *.up: 16").runtime("flash").workspace_bytes for one in (few, many)]
    assert sizes[0] == sizes[1]


def named(value: Any) -> Iterator[torch.Tensor]:
    """The weights of an instruction."""
    if isinstance(value, Rows):
        products = [value.product] if value.up is None else [value.product, value.up]
        yield from (product.weight for product in products)
    elif isinstance(value, Heads):
        yield from (factor.u for factor in value.factors)
    elif isinstance(value, Embed):
        yield value.table
    elif isinstance(value, Attend):
        yield from (value.k_cache, value.v_cache)


@every_decoder
@pytest.mark.parametrize("engine", ENGINES)
def test_a_program_holds_no_weight_of_its_own(decoder: Decoder, family: str, engine: str) -> None:
    text = "*.q: 8 L1.v: 16 L2.k.h1: dense *.o: 32 *.up: 24 L1.down: 40"
    runtime = small(decoder(family, dtype=torch.float32), text).runtime(engine)
    model = runtime._model
    held = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    held |= {t.untyped_storage().data_ptr() for i in range(3) for t in runtime._cache.of_layer(i)}
    for step in runtime._step.program.instructions:
        assert all(weight.untyped_storage().data_ptr() in held for weight in named(step))


def test_neighbours_among_dense_q_k_and_v_are_one_product(decoder: Decoder) -> None:
    loaded = decoder("llama", dtype=torch.float32)
    for text, products in ((None, 1), ("*.q: 8", 2), ("*.k: 8", 3), ("*.v: 8", 2), ("*.qkv: 8", 1)):
        engine = "dense" if text is None else "flash"
        steps = small(loaded, text).runtime(engine)._step.program.instructions
        attends = [index for index, step in enumerate(steps) if isinstance(step, Attend)]
        assert sum(isinstance(step, Rows) for step in steps[: attends[0]]) == products


@pytest.mark.parametrize("engine", COMPRESSED)
def test_a_layer_of_factors_is_nine_instructions(decoder: Decoder, engine: str) -> None:
    text = "*.qkv: 8 *.o: 16 *.gate: 16 *.up: 16 *.down: 16"
    steps = small(decoder("llama", dtype=torch.float32), text).runtime(engine)._step.program.instructions
    kinds = [type(step).__name__ for step in steps]
    # P, its heads, attention, two factors of o, gate and up in one, their product, two factors of down. Values that
    # stay in rank space are a product of their own, and then one is the whole of o.
    layer = {False: "PHA OO GWDD", True: "VPHA O GWDD"}[engine.endswith("space")]
    names = {"H": "Heads", "A": "Attend"}
    assert kinds == ["Embed", *[names.get(letter, "Rows") for letter in layer.replace(" ", "")] * 3, "Rows"]
