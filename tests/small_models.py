"""Small models of an encoder, of one with fused linears, of a decoder with grouped queries and of one whose weights are
stored the other way round, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flashsvd.kernels.gate import relative_error
from flashsvd.models.family import family_of
from flashsvd.models.load import LoadedModel, load
from flashsvd.stats.base import Statistics

StatsModel = Callable[..., LoadedModel]

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 90,
    "max_position_embeddings": 64,
}
_SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
_OWN_SIZES: dict[str, dict[str, Any]] = {
    # Layers see a window of other widths: their masks and rotary positions differ.
    "modernbert": {"local_attention": 8, "attention_bias": True, "mlp_bias": True, **_SPECIAL},
    "llama": {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "gpt2": {"n_inner": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
FAMILIES = ["bert", "modernbert", "llama", "gpt2"]


@pytest.fixture(scope="session")
def stats_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            config = transformers.AutoConfig.for_model(
                family, num_labels=5, **{**_SIZES, **_OWN_SIZES.get(family, {})}
            )
            classes = (
                transformers.AutoModelForCausalLM
                if family_of(family).task == "language"
                else transformers.AutoModelForSequenceClassification
            )
            with torch.random.fork_rng():
                torch.manual_seed(7)
                model = classes.from_config(config)
                for parameter in model.parameters():
                    parameter.data.normal_(std=0.15 if parameter.dim() == 1 else 0.25)
            made[family] = tmp_path_factory.mktemp(f"stats-{family}")
            model.save_pretrained(made[family])
        return made[family]

    return folder


@pytest.fixture(scope="session")
def stats_model(stats_folder: Callable[..., Path]) -> StatsModel:
    """model(family, dtype=, per_head=): a new one each time, so that tests may change it."""

    def model(family: str, dtype: torch.dtype = torch.float64, per_head: bool = True) -> LoadedModel:
        return load(str(stats_folder(family)), dtype=dtype, per_head=per_head)

    return model


@pytest.fixture(params=FAMILIES)
def loaded(request: pytest.FixtureRequest, stats_model: StatsModel) -> Iterator[LoadedModel]:
    """Every family in turn."""
    yield stats_model(request.param)


@pytest.fixture(scope="session")
def text() -> list[dict[str, torch.Tensor]]:
    """Two batches: one padded on the right, on the left and on both sides, one without a mask."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 90, (4, 13), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    mask[1, :4] = 0
    mask[2, 11:] = 0
    mask[2, :2] = 0
    return [
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": torch.randint(3, 90, (3, 17), generator=generator)},
    ]


def worst(mine: Statistics, other: Statistics) -> float:
    """The largest relative error of any statistic that both have."""
    return max(
        relative_error(getattr(mine.by_slot[key], need), getattr(other.by_slot[key], need))
        for key in mine.by_slot
        for need in mine.needs & other.needs
    )
