"""Decoders: what their families say of them, that they load, and that factors at full rank are the dense model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import scaled_dot_product_attention

from flashsvd.engines.build import build
from flashsvd.engines.hub import load_compressed
from flashsvd.errors import CheckpointError, ModelError
from flashsvd.factors import factorise, reconstruct
from flashsvd.kernels.ffn.activation import activate
from flashsvd.methods import method_named
from flashsvd.models.family import Family, families, family_of
from flashsvd.models.linears import linear_of
from flashsvd.models.load import LoadedModel, load
from flashsvd.models.positions import with_positions
from flashsvd.models.sources import Source
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute, weight_of
from tests.small_decoders import SIZES, Decoder, DecoderFolder, every_decoder

IDS = torch.arange(34).reshape(2, 17) % 50


def test_every_decoder_is_tested_here() -> None:
    assert {name for name, family in families().items() if family.task == "language"} == SIZES.keys()


@every_decoder
def test_the_shape_is_that_of_the_linears(decoder: Decoder, family: str) -> None:
    loaded = decoder(family)
    names = ("q", "k", "v", "o", "up", "down")
    assert loaded.shape.slot_names == (
        names if family in ("gpt2", "opt") else (*names[:4], "gate", "up", "down")
    )
    for layer, slot in loaded.shape:
        assert weight_of(loaded, layer, slot).shape == (slot.out_features, slot.in_features)
    shape, config = loaded.shape, loaded.model.config
    assert [shape.slot(0, name).heads for name in "qkvo"] == [shape.heads, shape.kv_heads, shape.kv_heads, 0]
    assert shape.slot(0, "q").unit_out == shape.slot(0, "k").unit_out == shape.head_dim
    assert (shape.heads, shape.max_positions) == (4, config.max_position_embeddings)
    if family == "llama":
        assert (shape.kv_heads, shape.head_dim, shape.slot(0, "o").in_features) == (2, 24, 96)
    linears = [linear_of(loaded.model.base_model, loaded.family, shape, 1, name) for name in "qkvo"]
    biases = [linear.bias is not None for linear in linears]
    own = {"mistral": [False] * 4, "qwen2": [True] * 3 + [False], "qwen3": [False] * 4}
    assert biases == own.get(family, [True] * 4)


@pytest.mark.parametrize("per_head", [True, False])
@every_decoder
def test_full_rank_factors_are_the_dense_model(decoder: Decoder, family: str, per_head: bool) -> None:
    loaded = decoder(family, per_head)
    plan = RankPlan.full_rank(loaded.shape)
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    for layer, slot in loaded.shape:
        made = reconstruct(slot, factors[layer, slot.name])
        torch.testing.assert_close(made, weight_of(loaded, layer, slot), rtol=0, atol=1e-12)
    lowrank = build(loaded, "lowrank", factors, plan)
    mask = torch.ones_like(IDS)
    mask[1, :4] = 0
    mine, dense = (model(IDS, attention_mask=mask).logits for model in (lowrank, loaded.model))
    torch.testing.assert_close(mine, dense, rtol=0, atol=1e-10)
    factors[1, "k"].v[0, 0] += 1e-3
    assert (lowrank(IDS, attention_mask=mask).logits - dense).abs().max() > 1e-8
    factors[1, "k"].v[0, 0] -= 1e-3


@every_decoder
def test_a_compressed_decoder_is_saved_and_read(decoder: Decoder, family: str, tmp_path: Path) -> None:
    loaded = decoder(family)
    plan = RankPlan.from_text(loaded.shape, "*.qkv: 5 *.up: 20 L2.down: 9")
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    lowrank = build(loaded, "lowrank", factors, plan)
    lowrank.save_pretrained(tmp_path)
    again = load_compressed(tmp_path)
    written, read = lowrank.state_dict(), again.state_dict()
    assert written.keys() == read.keys()
    assert all(torch.equal(written[name], read[name]) for name in written)
    # What was read lies in memory as files have it, and sums of such rows may come in another order.
    torch.testing.assert_close(again(IDS).logits, lowrank(IDS).logits, rtol=1e-12, atol=1e-12)


def test_tied_embeddings_are_no_missing_weight(decoder_folder: DecoderFolder, tmp_path: Path) -> None:
    for tied in (True, False):
        folder = decoder_folder("llama", tie_word_embeddings=tied)
        names = load_file(folder / "model.safetensors").keys()
        assert ("lm_head.weight" in names) is not tied
        model = load(str(folder)).model
        same = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        assert same is tied
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, first lm_head\.weight"):
        load(str(tmp_path))


class Written:
    """A block of any decoder in plain torch, from nothing but what its Family says."""

    def __init__(self, loaded: LoadedModel, family: Family) -> None:
        self.loaded, self.family = loaded, family

    def block(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        return self.sublayer(
            layer, "feed_forward", self.sublayer(layer, "attention", x, self.attention), self.feed
        )

    def sublayer(self, layer: int, name: str, x: torch.Tensor, function: Callable[..., Any]) -> torch.Tensor:
        norm = self.loaded.model.base_model.get_submodule(self.family.norm(layer, name))
        return x + function(layer, norm(x)) if self.family.pre_norm else norm(x + function(layer, x))

    def linear(self, layer: int, name: str, x: torch.Tensor) -> torch.Tensor:
        return linear_of(self.loaded.model.base_model, self.family, self.loaded.shape, layer, name)(x)

    def attention(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.shape[1])
        gap = positions[:, None] - positions
        seen = gap >= 0 if self.family.task == "language" else gap == gap
        window = self.family.window and self.family.window(self.loaded.model.config, layer)
        if window is not None:
            seen = seen & (gap.abs() <= window)
        q, k, v = (
            self.linear(layer, name, x).unflatten(-1, (-1, self.loaded.shape.head_dim)).transpose(1, 2)
            for name in "qkv"
        )
        head_norms = self.family.decoder and self.family.decoder.head_norms
        if head_norms:
            norms = [self.loaded.model.base_model.get_submodule(path) for path in head_norms(layer)]
            q, k = (norm(heads) for norm, heads in zip(norms, (q, k), strict=True))
        if self.family.rotary:
            q, k = (
                _turned(heads, positions, self.family.rotary(self.loaded.model.config, layer))
                for heads in (q, k)
            )
        heads = scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return self.linear(layer, "o", heads.transpose(1, 2).flatten(-2))

    def feed(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        activation = self.family.activation(self.loaded.model.config)
        gated = "gate" in self.loaded.shape.slot_names
        wide = activate(self.linear(layer, "gate" if gated else "up", x), activation)
        return self.linear(layer, "down", wide * self.linear(layer, "up", x) if gated else wide)


def _turned(heads: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    half = heads.shape[-1] // 2
    angles = positions[:, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    pairs = torch.complex(heads[..., :half], heads[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((pairs.real, pairs.imag), -1)


@torch.inference_mode()
def _worst(loaded: LoadedModel, family: Family) -> float:
    """Largest difference of any block's output to the one written from the family's description."""
    inputs: dict[int, torch.Tensor] = {}
    outputs: dict[int, torch.Tensor] = {}
    handles = []
    for layer, block in enumerate(family.layers(loaded.model.base_model)):

        def keep(_: Any, args: Any, kwargs: Any, out: Any, layer: int = layer) -> None:
            inputs[layer] = args[0] if args else kwargs["hidden_states"]
            outputs[layer] = out[0] if isinstance(out, tuple) else out

        handles.append(block.register_forward_hook(keep, with_kwargs=True))
    loaded.model(IDS)
    for handle in handles:
        handle.remove()
    written = Written(loaded, family)
    return max(float((written.block(i, inputs[i]) - outputs[i]).abs().max()) for i in inputs)


# transformers turns q and k in float32, whatever the model's dtype.
LIMIT = 1e-5


@every_decoder
def test_a_family_describes_its_blocks_in_full(decoder: Decoder, family: str) -> None:
    loaded = decoder(family)
    assert _worst(loaded, loaded.family) < LIMIT


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("llama", {"task": "classification"}),
        ("llama", {"pre_norm": False}),
        ("llama", {"rotary": lambda config, layer: 100.0}),
        ("mistral", {"window": lambda config, layer: 5}),
        ("mistral", {"window": lambda config, layer: 3}),
        ("qwen2", {"window": lambda config, layer: 3}),
        ("opt", {"pre_norm": False}),
    ],
)
def test_a_wrong_description_of_a_decoder_is_caught(
    decoder: Decoder, family: str, wrong: dict[str, Any]
) -> None:
    loaded = decoder(family)
    assert _worst(loaded, dataclasses.replace(loaded.family, **wrong)) > 1000 * LIMIT


def test_what_no_decoder_can_be_is_refused() -> None:
    config = transformers.LlamaConfig(hidden_size=96, num_attention_heads=6, num_key_value_heads=4)
    with pytest.raises(ModelError, match="6 query heads cannot share 4 key heads"):
        family_of("llama").shape(config)


def test_a_longer_preset_of_a_decoder_keeps_its_head(decoder: Decoder) -> None:
    preset = dataclasses.replace(decoder("llama"), source=Source("tiny", "preset", "tiny"))
    longer = with_positions(preset, 160)
    assert longer.shape.max_positions == 160
    assert type(longer.model).__name__ == "LlamaForCausalLM"
    assert torch.equal(longer.model(IDS).logits, preset.model(IDS).logits)


def test_a_preset_larger_than_the_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashsvd.models.load.available_bytes", lambda device: 2**30)
    with pytest.raises(ModelError, match=r"llama-2-7b takes 25\.1 GiB as float32 but 1 GiB is free") as error:
        load("llama-2-7b")
    assert "\n" not in str(error.value)
