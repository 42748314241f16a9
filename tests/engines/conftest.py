"""A small model of every family and head, of the real classes, with random weights that matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flashsvd.models.load import LoadedModel, load
from tests.small_decoders import decoder, decoder_folder

__all__ = ["decoder", "decoder_folder"]

FamilyModel = Callable[..., LoadedModel]

_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 120,
    "max_position_embeddings": 64,
}
_OWN_SIZES: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 24},
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "distilbert": {"hidden_dim": 96},
    # A window much shorter than the inputs, so that it matters.
    "modernbert": {
        "local_attention": 8,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    },
}
_CLASSES = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
    "masked": transformers.AutoModelForMaskedLM,
    "base": transformers.AutoModel,
}


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """folder(family, head, **sizes): a model with that head, saved. Heads are sequence, token, masked and base."""
    made: dict[Any, Path] = {}

    def folder(family: str, head: str = "sequence", **sizes: Any) -> Path:
        key = (family, head, *sorted(sizes.items()))
        if key not in made:
            settings = {**_SIZES, **_OWN_SIZES.get(family, {}), **sizes}
            config = transformers.AutoConfig.for_model(family, num_labels=5, **settings)
            with torch.random.fork_rng():
                torch.manual_seed(len(made))
                model = _CLASSES[head].from_config(config)
                for parameter in model.parameters():
                    parameter.data.normal_(std=0.15 if parameter.dim() == 1 else 0.25)
            made[key] = tmp_path_factory.mktemp(f"{family}-{head}")
            model.save_pretrained(made[key])
        return made[key]

    return folder


@pytest.fixture(scope="session")
def family_model(family_folder: Callable[..., Path]) -> FamilyModel:
    """model(family, head, dtype=, per_head=, **sizes): the same, loaded; treat it as read-only."""

    def model(
        family: str,
        head: str = "sequence",
        dtype: torch.dtype = torch.float64,
        per_head: bool = True,
        **sizes: Any,
    ) -> LoadedModel:
        return load(str(family_folder(family, head, **sizes)), dtype=dtype, per_head=per_head)

    return model


@pytest.fixture(scope="session", params=["unpadded", "padded"])
def encoded(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    """Token ids [5, 21], without a mask or with padding on the right, on the left, on both sides and in none."""
    ids = torch.randint(2, 120, (5, 21), generator=torch.Generator().manual_seed(1))
    if request.param == "unpadded":
        return {"input_ids": ids}
    mask = torch.ones_like(ids)
    mask[0, 13:] = 0
    mask[1, :6] = 0
    mask[2, :3] = 0
    mask[2, 16:] = 0
    mask[3, 1:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="session")
def answer() -> Callable[..., torch.Tensor]:
    """answer(model, encoded): its logits, or its last hidden states where it has no head."""

    @torch.inference_mode()
    def call(model: Any, encoded: dict[str, torch.Tensor]) -> torch.Tensor:
        out = model(**encoded)
        return out.logits if hasattr(out, "logits") else out.last_hidden_state

    return call
