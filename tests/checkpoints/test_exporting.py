"""What is imported can be given back: bit by bit as factors, and as dense weights that plain transformers opens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from published import BERT, EXAMPLES, IDS, LLAMA, Example
from safetensors.torch import load_file

from flashsvd.allocate import uniform
from flashsvd.checkpoints.exporting import export
from flashsvd.checkpoints.imported import Imported, write
from flashsvd.checkpoints.importing import import_checkpoint, unpack
from flashsvd.engines.build import build
from flashsvd.engines.hub import load_compressed
from flashsvd.errors import CheckpointError, InputError
from flashsvd.factors import factorise
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel, load
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute

Made = Callable[[str], Example]
EXPORTED = {"dobi": "svd_llm", "asvd": "svd_llm", "flashsvd_v1": "palu"}


def _same(one: Imported, other: Imported) -> None:
    assert one.factors.keys() == other.factors.keys() and one.rest.keys() == other.rest.keys()
    for key, factor in one.factors.items():
        pairs = [unpack(i.shape.slot(*key), i.factors[key], i.biases.get(key)) for i in (one, other)]
        for mine, theirs in zip((*pairs[0].u, *pairs[0].v), (*pairs[1].u, *pairs[1].v), strict=True):
            assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype
        assert factor.ranks == other.factors[key].ranks
        assert (pairs[0].bias is None) == (pairs[1].bias is None)
        assert pairs[0].bias is None or torch.equal(pairs[0].bias, pairs[1].bias)
    assert all(torch.equal(tensor, other.rest[name]) for name, tensor in one.rest.items())
    assert one.plan == other.plan and one.groups == other.groups and one.biased == other.biased


@pytest.mark.parametrize("name", EXAMPLES)
def test_import_export_import_is_bit_equal(example: Made, name: str, tmp_path: Path) -> None:
    first = import_checkpoint(example(name).folder)
    write(first, tmp_path / "ours")
    layout = export(tmp_path / "ours", tmp_path / "factors", "factors")
    assert layout == EXPORTED.get(first.method, first.method)
    second = import_checkpoint(tmp_path / "factors")
    assert second.method == layout
    _same(first, second)


@pytest.mark.parametrize("name", EXAMPLES)
def test_dense_exports_are_plain_models(example: Made, name: str, tmp_path: Path) -> None:
    write(import_checkpoint(example(name).folder), tmp_path / "ours")
    assert export(tmp_path / "ours", tmp_path / "dense", "dense") == "dense"
    auto = (
        transformers.AutoModelForSequenceClassification
        if name.startswith("flashsvd")
        else transformers.AutoModelForCausalLM
    )
    model, report = auto.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert getattr(model.config, "quantization_config", None) is None
    with torch.inference_mode():
        logits = model(IDS).logits
    torch.testing.assert_close(logits, example(name).logits(), rtol=0, atol=1e-12)
    assert load(str(tmp_path / "dense")).model.config.model_type == model.config.model_type


# Models that were compressed here


def _compressed(loaded: LoadedModel, plan: RankPlan, method: str = "svd") -> Any:
    spectra = compute(loaded, method_named(method))
    return build(loaded, "lowrank", factorise(loaded, spectra, plan), plan, method=method)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT))
    model.save_pretrained(folder)
    return load(str(folder))


@pytest.mark.parametrize(
    ("per_head", "rules", "layout"),
    [
        (True, "*.qkv: 3 *.up: 9 L1.down: 7 L2.q.h2: 5 L2.k.h1: dense", "palu"),
        (False, "*.qkv: 9 *.o: 8", "asvd"),
    ],
)
def test_what_was_compressed_here_is_exported_and_read(
    bert: LoadedModel, tmp_path: Path, per_head: bool, rules: str, layout: str
) -> None:
    loaded = load(bert.name, per_head=per_head)
    plan = RankPlan.from_text(loaded.shape, rules)
    model = _compressed(loaded, plan)
    assert export(model, tmp_path / "factors", "factors") == layout
    again = import_checkpoint(tmp_path / "factors")
    write(again, tmp_path / "ours")
    export(model, tmp_path / "dense", "dense")
    dense = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    with torch.inference_mode():
        logits = model(IDS).logits
        assert torch.equal(load_compressed(tmp_path / "ours")(IDS).logits, logits)
        torch.testing.assert_close(dense(IDS).logits, logits, rtol=1e-4, atol=1e-5)


def test_layers_that_share_are_exported_as_they_share(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(folder)
    loaded = load(str(folder), per_head=False)
    shape = loaded.shape.with_sharing(2, ("q", "k", "v", "up", "gate"))
    plan = RankPlan.build(shape, lambda layer, slot, unit: 7)
    from flashsvd.factors import LowRank

    generator = torch.Generator().manual_seed(0)
    factors: dict[tuple[int, str], LowRank] = {}
    for layer, slot in shape:
        heads = slot.heads
        first = shape.group(layer, slot.name)[0]
        v = torch.randn(7, slot.in_features, generator=generator)
        u = torch.randn(slot.out_features, 7, generator=generator) / 10
        if heads:
            u = u.unflatten(0, (heads, -1)).transpose(1, 2).flatten(0, 1)
        factors[layer, slot.name] = LowRank(
            u, v if first == layer else factors[first, slot.name].v, (7,) * max(heads, 1), shared=bool(heads)
        )
    model = build(loaded, "lowrank", factors, plan)
    assert export(model, tmp_path / "factors", "factors") == "basis_sharing"
    again = import_checkpoint(tmp_path / "factors")
    assert again.groups["up"] == ((0, 1), (2,)) and again.plan == plan
    write(again, tmp_path / "ours")
    with torch.inference_mode():
        assert torch.equal(load_compressed(tmp_path / "ours")(IDS).logits, model(IDS).logits)


def test_slots_of_one_linear_are_merged_into_one(tmp_path: Path) -> None:
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    config = transformers.ModernBertConfig(**{**BERT, **ids, "local_attention": 8})
    transformers.ModernBertForSequenceClassification(config).save_pretrained(tmp_path / "source")
    loaded = load(str(tmp_path / "source"))
    model = _compressed(loaded, RankPlan.from_text(loaded.shape, "*.q: 5 L1.up: 9 *.down: 8"))
    export(model, tmp_path / "dense", "dense")
    dense = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    with torch.inference_mode():
        torch.testing.assert_close(dense(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="several slots with one linear: export it with form dense"):
        export(model, tmp_path / "factors", "factors")


def test_weights_that_are_stored_the_other_way_round_are_exported_so(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.2)
    model.save_pretrained(tmp_path / "source")
    loaded = load(str(tmp_path / "source"))
    # One fused linear in part, one not at all, a square one and an oblong one.
    compressed = _compressed(loaded, RankPlan.from_text(loaded.shape, "L1.q: 5 *.o: 9 *.down: 8"))
    export(compressed, tmp_path / "dense", "dense")
    dense, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.inference_mode():
        torch.testing.assert_close(dense(IDS).logits, compressed(IDS).logits, rtol=1e-4, atol=1e-5)


def test_a_bias_without_a_place_is_an_error_of_dense_and_none_of_factors(
    example: Made, tmp_path: Path
) -> None:
    first = import_checkpoint(example("svd_llm").folder)
    bias = torch.ones(16, dtype=torch.float64)
    from dataclasses import replace

    write(replace(first, biases={(1, "k"): bias}, biased=True), tmp_path / "ours")
    with pytest.raises(
        CheckpointError, match=r"L2\.k has a bias that Llama has no place for: use form factors"
    ):
        export(tmp_path / "ours", tmp_path / "dense", "dense")
    assert not (tmp_path / "dense").exists()
    export(tmp_path / "ours", tmp_path / "factors", "factors")
    names = load_file(tmp_path / "factors" / "model.safetensors").keys()
    assert [name for name in names if name.endswith("bias")] == ["model.layers.1.self_attn.k_u_proj.bias"]
    second = import_checkpoint(tmp_path / "factors")
    assert second.biased and torch.equal(second.biases[1, "k"], bias)


def test_what_cannot_be_exported_says_so(bert: LoadedModel, example: Made, tmp_path: Path) -> None:
    model = _compressed(bert, uniform(bert.shape, 0.5))
    with pytest.raises(InputError, match="form must be one of dense, factors, got 'onnx'"):
        export(model, tmp_path / "out", "onnx")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="not compressed"):
        export(bert.model, tmp_path / "out", "dense")
    with pytest.raises(CheckpointError, match="not a compressed checkpoint"):
        export(bert.name, tmp_path / "out", "dense")
    write(import_checkpoint(example("palu").folder), tmp_path / "ours")
    with pytest.raises(InputError, match="holds a model already"):
        export(model, tmp_path / "ours", "dense")
    with pytest.raises(InputError, match="is what is being read"):
        export(tmp_path / "ours", tmp_path / "ours", "dense", force=True)
    assert load_compressed(tmp_path / "ours").config.model_type == "llama"
    export(model, tmp_path / "ours", "dense", force=True)
    assert load(str(tmp_path / "ours")).shape == bert.shape
