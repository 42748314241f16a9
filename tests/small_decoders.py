"""A small model of every causal family, of the real classes, with random weights and biases that matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flashsvd.models.load import LoadedModel, load

DecoderFolder = Callable[..., Path]
Decoder = Callable[..., LoadedModel]

SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 96},
    "llama": {"head_dim": 24, "num_key_value_heads": 2, "attention_bias": True},
    # Windows much shorter than the inputs, so that they matter.
    "mistral": {"head_dim": 16, "num_key_value_heads": 1, "sliding_window": 5},
    "qwen2": {
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen3": {"head_dim": 24, "num_key_value_heads": 2},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
}
every_decoder = pytest.mark.parametrize("family", SIZES)
_COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 50,
    "max_position_embeddings": 100,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> DecoderFolder:
    """folder(family, **sizes): a model with a language head, saved."""
    made: dict[Any, Path] = {}

    def folder(family: str, **sizes: Any) -> Path:
        key = (family, repr(sorted(sizes.items())))
        if key not in made:
            config = transformers.AutoConfig.for_model(family, **{**_COMMON, **SIZES[family], **sizes})
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = transformers.AutoModelForCausalLM.from_config(config)
                for name, parameter in model.named_parameters():
                    # Norms that keep the scale of what they norm, so that every block matters.
                    mean = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
                    parameter.data.normal_(mean, 0.2)
            made[key] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[key])
        return made[key]

    return folder


@pytest.fixture(scope="session")
def decoder(decoder_folder: DecoderFolder) -> Decoder:
    """model(family, per_head=, dtype=, device=, **sizes): the same, loaded anew each time."""

    def model(
        family: str,
        per_head: bool = True,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        **sizes: Any,
    ) -> LoadedModel:
        folder = str(decoder_folder(family, **sizes))
        return load(folder, dtype=dtype, device=device, per_head=per_head)

    return model
