"""What the families say of configurations: shapes, presets, and what they refuse."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from flashsvd.errors import ModelError
from flashsvd.models.encoders import kernel_activation
from flashsvd.models.family import families, family_of
from flashsvd.models.linears import linear_of
from flashsvd.models.load import load, preset_class
from flashsvd.models.sources import catalogue, resolve, shape_of

# Millions of parameters, as transformers counts the published ones: encoders with a sequence classification head of
# two labels, decoders with their language head.
PUBLISHED = {
    "bert-base": 109.48,
    "bert-large": 335.14,
    "distilbert-base": 66.96,
    "electra-base": 109.48,
    "electra-small": 13.55,
    "gpt2": 124.44,
    "llama-2-70b": 68976.65,
    "llama-2-7b": 6738.42,
    "llama-3-8b": 8030.26,
    "modernbert-base": 149.61,
    "modernbert-large": 395.83,
    "qwen2.5-0.5b": 494.03,
    "qwen3-0.6b": 596.05,
    "roberta-base": 124.65,
    "roberta-large": 355.36,
    "xlm-roberta-base": 278.05,
}

POSITIONS = {
    "gpt2": 1024,
    "llama-2-70b": 4096,
    "llama-2-7b": 4096,
    "llama-3-8b": 8192,
    "modernbert-base": 8192,
    "modernbert-large": 8192,
    "qwen2.5-0.5b": 32768,
    "qwen3-0.6b": 40960,
}


def test_every_preset_is_listed_here() -> None:
    assert {source.name for source in catalogue() if source.kind == "preset"} == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_size_and_its_shape_needs_no_defaults(name: str) -> None:
    family = next(family for family in families().values() if name in family.presets)
    config = transformers.AutoConfig.for_model(family.model_type, **family.presets[name].config)
    with torch.device("meta"):
        model = preset_class(family).from_config(config)
    assert round(model.num_parameters() / 1e6, 2) == PUBLISHED[name]
    shape = shape_of(resolve(name))
    assert shape == family.shape(config)
    assert shape is not None and shape.max_positions == POSITIONS.get(name, 512)
    for layer, slot in shape:
        weight = linear_of(model.base_model, family, shape, layer, slot.name).weight
        assert weight.shape == (slot.out_features, slot.in_features)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_roberta_runs_at_its_longest_and_not_beyond(family: str) -> None:
    config = transformers.AutoConfig.for_model(
        family, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=20, vocab_size=30, pad_token_id=1,
    )  # fmt: skip
    model = transformers.AutoModel.from_config(config).eval()
    longest = family_of(family).shape(config).max_positions
    assert longest == 18
    model(torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, longest + 1), 5))


@pytest.mark.parametrize("family", ["bert", "electra", "roberta", "xlm-roberta"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"is_decoder": True}, "decoder"),
        ({"is_decoder": True, "add_cross_attention": True}, "decoder"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' positions"),
    ],
)
def test_what_is_no_plain_encoder_is_refused(family: str, setting: dict[str, object], message: str) -> None:
    config = transformers.AutoConfig.for_model(family, **setting)
    with pytest.raises(ModelError, match=message) as error:
        family_of(family).shape(config)
    assert "\n" not in str(error.value)


def test_a_refusal_reaches_whoever_loads_a_folder(tiny_folder: Path, tmp_path: Path) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("{", '{"position_embedding_type": "relative_key_query",', 1))
    with pytest.raises(ModelError, match="'relative_key_query' positions"):
        load(str(tmp_path))


def test_modernbert_says_what_its_layers_see() -> None:
    family = family_of("modernbert")
    config = transformers.AutoConfig.for_model("modernbert", num_hidden_layers=4)
    assert family.rotary is not None and family.window is not None
    assert [family.window(config, layer) for layer in range(4)] == [None, 64, 64, None]
    assert [family.rotary(config, layer) for layer in range(4)] == [160_000, 10_000, 10_000, 160_000]
    config.rope_parameters["full_attention"]["rope_type"] = "linear"
    with pytest.raises(ModelError, match="'linear' have no kernel"):
        family.rotary(config, 0)


def test_an_activation_without_a_kernel_is_named() -> None:
    assert kernel_activation("gelu_new") == "gelu_tanh"
    with pytest.raises(ModelError, match="'silu' has no kernel"):
        family_of("distilbert").activation(SimpleNamespace(activation="silu"))
