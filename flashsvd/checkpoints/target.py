"""Which architecture a checkpoint is of: its configuration without what other tools added, and its dense weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from flashsvd.checkpoints.base import Source, Target
from flashsvd.errors import CheckpointError, ModelError
from flashsvd.models.family import Family, families, family_of
from flashsvd.models.load import fetch, preset_class
from flashsvd.models.sources import model_type_of, resolve

_HEADS = {
    "ForCausalLM": transformers.AutoModelForCausalLM,
    "ForMaskedLM": transformers.AutoModelForMaskedLM,
    "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "ForTokenClassification": transformers.AutoModelForTokenClassification,
    "ForQuestionAnswering": transformers.AutoModelForQuestionAnswering,
    "LMHeadModel": transformers.AutoModelForCausalLM,
    "Model": transformers.AutoModel,
}
# transformers reads these of old configurations, though it writes them under other names.
_OLD_NAMES = frozenset({"rope_theta", "rope_scaling", "torch_dtype", "num_labels"})


@dataclass(frozen=True)
class Base:
    """A dense model named by the user: its configuration, and its folder where it has weights to lend."""

    config: transformers.PretrainedConfig
    folder: Path | None


def find_base(name: Path | str) -> Base:
    """A preset lends its configuration alone: its weights are random.

    Raises ModelError where there is no such model."""
    source = resolve(str(name))
    if source.kind == "hub":
        source = fetch(source)
    if source.folder is None:
        family = family_of(model_type_of(source))
        config = transformers.AutoConfig.for_model(family.model_type, **family.presets[source.name].config)
        return Base(config, None)
    family_of(model_type_of(source))
    return Base(
        transformers.AutoConfig.from_pretrained(source.folder, trust_remote_code=False), source.folder
    )


def plain_config(source: Source, base: Base | None) -> transformers.PretrainedConfig:
    """The configuration of the dense architecture: the checkpoint's own, else that of `base`.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        ModelError: no family is written for the architecture.
    """
    if source.config is None:
        if base is None:
            raise CheckpointError(
                f"{source.path} has no config.json beside it: name the dense model with --base"
            )
        return base.config
    if "model_type" not in source.config:
        raise CheckpointError(f"{source.path}: config.json names no model_type: fetch it again")
    model_type = _known_type(str(source.config["model_type"]))
    known = set(transformers.AutoConfig.for_model(model_type).to_dict()) | _OLD_NAMES
    settings = {k: v for k, v in source.config.items() if k in known and k not in ("model_type", "dtype")}
    try:
        return transformers.AutoConfig.for_model(model_type, **settings)
    except Exception as error:
        words = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(
            f"{source.path}: config.json is no {model_type} configuration: {words}"
        ) from None


def _known_type(model_type: str) -> str:
    """Tools put their name before the type or after it: `palullama` is `llama`.

    >>> _known_type("palullama"), _known_type("roberta"), _known_type("svdllm-llama")
    ('llama', 'roberta', 'llama')
    """
    if model_type in families():
        return model_type
    within = [name for name in families() if name in model_type.lower()]
    return max(within, key=len) if within else family_of(model_type).model_type


def make_target(
    source: Source, config: transformers.PretrainedConfig, *, fused: bool = False
) -> tuple[Target, str]:
    """The target, and the name of transformers' class for it. No weight is made.

    fused: also for a family that computes several slots with one linear, which no published layout is of.

    Raises:
        CheckpointError: transformers has no model for the configuration.
        ModelError: no family is written for it, or a fused one.
    """
    family = family_of(config.model_type)
    if family.fused and not fused:
        raise ModelError(f"no published layout is of {family.title}: its linears are fused")
    auto = _auto_class(config, family)
    try:
        with torch.device("meta"):
            model = auto.from_config(config)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        words = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{source.path}: config.json makes no {family.title}: {words}") from None
    state = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    tied = {}
    for name, tensor in state.items():
        if first.setdefault(id(tensor), name) != name:
            tied[name] = first[id(tensor)]
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    expected: Mapping[str, Any] = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return Target(family, family.shape(config), prefix, expected, tied), type(model).__name__


def _auto_class(config: Any, family: Family) -> Any:
    for name in config.architectures or []:
        for ending, auto in _HEADS.items():
            if str(name).endswith(ending):
                return auto
    return preset_class(family)
