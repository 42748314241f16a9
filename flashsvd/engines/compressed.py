"""A folder of factors, opened as a model with what is known of it."""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers
from torch import nn

from flashsvd.engines.hub import METHOD, load_compressed
from flashsvd.models.family import family_of
from flashsvd.models.load import LoadedModel, quiet
from flashsvd.models.sources import Source
from flashsvd.ranks import RankPlan

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def is_compressed(source: Source) -> bool:
    """Whether a source is a folder of factors."""
    if source.folder is None:
        return False
    try:
        saved = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Whoever loads it as a dense model says what is wrong.
        return False
    named = saved.get("quantization_config") if isinstance(saved, dict) else None
    return isinstance(named, dict) and named.get("quant_method") == METHOD


def open_compressed(source: Source, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """The folder's model, run by the low-rank engine, its tokenizer and its evaluation set; the shape is the plan's.

    Raises what `flashsvd.engines.hub.load_compressed` raises.
    """
    assert source.folder is not None
    model: Any = load_compressed(source.folder, engine="lowrank", dtype=dtype)
    tokenizer = None
    if any((source.folder / name).is_file() for name in _TOKENIZER_FILES):
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    evaluation = source.folder / "evaluation.parquet"
    return LoadedModel(
        source=source,
        family=family_of(model.config.model_type),
        shape=RankPlan.from_json(model.config.quantization_config.plan).shape,
        model=nn.Module.to(model, device),
        tokenizer=tokenizer,
        evaluation=evaluation if evaluation.is_file() else None,
    )
