"""Another tool's checkpoint as factors, a plan and everything else, and the folder of ours that it becomes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flashsvd.errors import InputError
from flashsvd.factors import Factors
from flashsvd.folders import check_free, new_folder
from flashsvd.models.companions import OWN_TEXTS
from flashsvd.models.family import Family
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan

if TYPE_CHECKING:
    import transformers

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_GENERATION = ("generation_config.json",)
_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class Imported:
    """A checkpoint of `method`, the name of its layout.

    `factors` and `biases` by (layer, slot); layers that share a basis hold the same tensor v, and `groups` lists them
    by slot name. `rest` are all other weights, as transformers names them. `prefix` comes before a slot's path in a
    state dict. `biased`: some factored linear has a bias that the architecture does not give it. `folders` may hold
    the tokenizer.
    """

    method: str
    family: Family
    config: transformers.PretrainedConfig
    plan: RankPlan
    factors: Factors
    biases: Mapping[tuple[int, str], torch.Tensor]
    rest: Mapping[str, torch.Tensor]
    prefix: str
    groups: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    biased: bool = False
    folders: Sequence[Path] = ()

    @property
    def shape(self) -> ModelShape:
        return self.plan.shape

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What our folder holds: U, V and bias of every factored linear, V once for layers that share it, and the
        rest."""
        tensors = dict(self.rest)
        for (layer, name), factor in self.factors.items():
            path = f"{self.prefix}{self.family.path(layer, name)}"
            tensors[f"{path}.U"] = factor.u
            if self.shape.group(layer, name)[0] == layer:
                tensors[f"{path}.V"] = factor.v
            bias = self.biases.get((layer, name))
            if bias is not None:
                tensors[f"{path}.bias"] = bias
            elif self.biased:
                tensors[f"{path}.bias"] = factor.u.new_zeros(self.shape.slot(layer, name).out_features)
        return tensors


def write(imported: Imported, out: Path, *, force: bool = False) -> None:
    """A folder that `flashsvd.engines.hub.load_compressed` opens, whole or not at all.

    Raises:
        InputError: `out` is there already; with `force`, it is no model.
        CheckpointError: writing failed, as on a full disk.
    """
    from flashsvd.engines.hub import FactorConfig

    config = imported.config.to_dict()
    stored = FactorConfig(imported.plan.to_json(), imported.method, "lowrank", imported.biased)
    config["quantization_config"] = stored.to_dict()
    write_folder(out, imported.state_dict(), config, imported.folders, force=force)


def write_folder(
    out: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    folders: Sequence[Path] = (),
    *,
    force: bool = False,
) -> None:
    """Safetensors (in shards where they are large), config.json, and the first tokenizer, generation settings and sets
    to calibrate and score on that are found in `folders`."""
    from transformers import AutoConfig

    check_free(out, force=force)
    for folder in folders:
        if folder.resolve() == out.resolve():
            raise InputError(f"{out} is what is being read: choose another folder")
    with new_folder(out, force=force) as partial:
        _write_tensors(partial, tensors)
        settings = {key: value for key, value in config.items() if key != "model_type"}
        AutoConfig.for_model(config["model_type"], **settings).save_pretrained(partial)
        for names in (_TOKENIZER, _GENERATION, OWN_TEXTS):
            _copy_first(names, folders, partial)


def _copy_first(names: Sequence[str], folders: Sequence[Path], out: Path) -> None:
    """Copies those of the named files that the first folder with any of them has."""
    for folder in folders:
        found = [folder / name for name in names if (folder / name).is_file()]
        for file in found:
            shutil.copyfile(file, out / file.name)
        if found:
            return


def _write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    own = _own_memory(tensors)
    split = split_torch_state_dict_into_shards(
        own, filename_pattern="model{suffix}.safetensors", max_shard_size=_SHARD_BYTES
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: own[name] for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _own_memory(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of which no two share memory, as the format wants them."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        own[name] = tensor
    return own
