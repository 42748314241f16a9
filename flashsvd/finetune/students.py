"""The models that are trained: a classifier for a task, a cut of a dense model, or a compressed folder opened again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from flashsvd.engines.build import build
from flashsvd.engines.compressed import open_compressed
from flashsvd.engines.modules import HeadLowRankLinear, LowRankLinear
from flashsvd.errors import CheckpointError, InputError
from flashsvd.factors import Factors
from flashsvd.models.load import LoadedModel, quiet
from flashsvd.models.sources import Source
from flashsvd.ranks import RankPlan


def classifier(loaded: LoadedModel, classes: tuple[str, ...], *, seed: int) -> Any:
    """A trainable sequence classifier with the loaded model's weights; no classes: a regression of one output.

    A head of as many outputs is kept; any other is made anew, from the seed. A preset is all random weights.

    Raises:
        CheckpointError: the checkpoint lacks weights of the encoder itself.
    """
    words = {
        "num_labels": len(classes) or 1,
        "problem_type": "single_label_classification" if classes else "regression",
        "id2label": dict(enumerate(classes or ("LABEL_0",))),
        "label2id": {name: index for index, name in enumerate(classes or ("LABEL_0",))},
    }
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if loaded.source.folder is None:
            config = copy.deepcopy(loaded.model.config)
            config.update(words)
            if loaded.tokenizer is not None and loaded.tokenizer.pad_token_id is not None:
                config.pad_token_id = loaded.tokenizer.pad_token_id
            model = transformers.AutoModelForSequenceClassification.from_config(config)
            return model.to(loaded.device)
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            loaded.source.folder,
            **words,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    prefix = f"{model.base_model_prefix}."
    lost = sorted(name for name in report["missing_keys"] if name.startswith(prefix) and "pooler" not in name)
    if lost:
        raise CheckpointError(f"{loaded.name} lacks {len(lost)} weights, first {lost[0]}: save it again")
    return model.to(loaded.device)


def cut(loaded: LoadedModel, factors: Factors, plan: RankPlan, method: str) -> Any:
    """The low-rank engine over factors, with memory of its own: the dense model can go on as its teacher."""
    return copy.deepcopy(build(loaded, "lowrank", factors, plan, method=method))


def reopen(source: Source, device: torch.device) -> tuple[LoadedModel, RankPlan]:
    """A compressed folder as a trainable model, run by the low-rank engine, and its plan.

    Raises what `load_compressed` raises.
    """
    loaded = open_compressed(source, torch.float32, device)
    model: Any = loaded.model
    saved = model.config.quantization_config
    # Trainer refuses what a quantizer loaded. This makes it what `build` makes: an ordinary model, marked in its
    # configuration alone.
    model.hf_quantizer.remove_quantization_config(model)
    model.config.quantization_config = saved
    return loaded, RankPlan.from_json(saved.plan)


def read_tokenizer(folder: str, token_types: int) -> Any:
    """The tokenizer of a folder, for a model that knows so many token types.

    Raises:
        InputError: the folder holds none.
    """
    if not any(
        (Path(folder) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    ):
        raise InputError(f"{folder} holds no tokenizer: expected a folder with tokenizer.json or vocab.txt")
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if token_types < 2:
        # RoBERTa has one embedding for all: the second sentence of a pair would be outside its table.
        tokenizer.model_input_names = [
            name for name in tokenizer.model_input_names if name != "token_type_ids"
        ]
    return tokenizer


def set_trainable(model: nn.Module, what: str) -> int:
    """Gives gradients to "factors" (every U and V), to "all" but the embeddings, or to "everything".

    Returns how many parameters that are.

    Raises:
        InputError: there are no factors.
    """
    model.requires_grad_(False)
    low_rank = [part for part in model.modules() if isinstance(part, LowRankLinear | HeadLowRankLinear)]
    if what != "everything" and not low_rank:
        raise InputError(
            "the plan keeps every linear dense: there are no factors to train; ask for lower ranks"
        )
    if what == "factors":
        for part in low_rank:
            part.U.requires_grad_(True)
            part.V.requires_grad_(True)
    else:
        model.requires_grad_(True)
    if what == "all":
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(False)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
