"""Our compressed checkpoints as plain folders: dense weights for anybody, or factors in a published layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from flashsvd.checkpoints import importers
from flashsvd.checkpoints.base import Importer, Pair, Source, Target
from flashsvd.checkpoints.imported import write_folder
from flashsvd.checkpoints.importing import product, unpack
from flashsvd.checkpoints.target import make_target
from flashsvd.engines.modules import HeadLowRankLinear, LowRankLinear
from flashsvd.errors import CheckpointError, InputError
from flashsvd.factors import LowRank
from flashsvd.folders import check_free
from flashsvd.models.linears import linear_of
from flashsvd.models.shape import Slot
from flashsvd.ranks import RankPlan

Form = Literal["factors", "dense"]
FORMS: tuple[Form, ...] = ("dense", "factors")


def export(
    compressed: Path | str | nn.Module, out: Path | str, form: Form = "dense", *, force: bool = False
) -> str:
    """Writes a compressed checkpoint, or a model that `flashsvd` built or opened, as a plain folder.

    "dense": U·V multiplied out, in float64 for float32 and in float32 for the halves: the original architecture, which
    plain transformers opens. "factors": two linears for every factored one, in the layout of SVD-LLM for decoders and
    of ASVD for encoders; in that of Basis Sharing where layers share a basis; and in that of Palu, which holds groups
    of heads as they are, where any slot is factored per head. Those open in the tools of these names, and here by
    `import_checkpoint`.

    Returns the name of the layout: "dense" or an importer's.

    Raises:
        InputError: another form, `out` is there already, or factors that no layout holds.
        CheckpointError: not a compressed checkpoint; a bias that the dense architecture has no place for.
    """
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    out = Path(out)
    check_free(out, force=force)
    folders = [] if isinstance(compressed, nn.Module) else [Path(compressed)]
    model, plan = _open(compressed)
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    bare = type(model.config).from_dict(config)
    target, architecture = make_target(Source(folders[0] if folders else out, {}), bare, fused=True)
    target = replace(target, shape=plan.shape)
    config["architectures"] = [architecture]
    pairs: dict[tuple[int, str], Pair] = {}
    for layer, slot in plan.shape:
        module = linear_of(model.base_model, target.family, plan.shape, layer, slot.name)
        if isinstance(module, LowRankLinear | HeadLowRankLinear):
            first = plan.shape.group(layer, slot.name)[0]
            pair = _pair(slot, module, _dense_bias(target, layer, slot.name) in target.expected)
            pairs[layer, slot.name] = pair if first == layer else replace(pair, v=pairs[first, slot.name].v)
    if form == "dense":
        tensors = _merged(model, target, pairs)
        layout = "dense"
    else:
        importer = _layout(target, pairs)
        assert importer.lay_out is not None
        laid_out, settings = importer.lay_out(target, pairs)
        tensors = {**_rest(model, target, {target.module(*key) for key in pairs}), **laid_out}
        config.update(settings)
        layout = importer.name
    write_folder(out, tensors, config, folders, force=force)
    return layout


def _open(compressed: Path | str | nn.Module) -> tuple[Any, RankPlan]:
    from flashsvd.engines.hub import METHOD, load_compressed

    model: Any = (
        compressed if isinstance(compressed, nn.Module) else load_compressed(compressed, engine="lowrank")
    )
    stored = getattr(model.config, "quantization_config", None)
    stored = stored.to_dict() if stored is not None and not isinstance(stored, dict) else stored
    if not stored or stored.get("quant_method") != METHOD:
        raise CheckpointError("the model to export is not compressed: its configuration names no rank plan")
    return model, RankPlan.from_json(stored["plan"])


def _pair(slot: Slot, module: LowRankLinear | HeadLowRankLinear, keeps_bias: bool) -> Pair:
    bias = None if module.bias is None else module.bias.detach()
    if bias is not None and not keeps_bias and not bias.any():
        # A place for a bias that this slot did not need.
        bias = None
    shared = isinstance(module, HeadLowRankLinear) and module.layout.shared
    ranks = module.layout.ranks if isinstance(module, HeadLowRankLinear) else (module.V.shape[0],)
    return unpack(slot, LowRank(module.U.detach(), module.V.detach(), ranks, shared), bias)


def _layout(target: Target, pairs: Mapping[tuple[int, str], Pair]) -> Importer:
    if target.family.fused:
        raise InputError(
            f"{target.family.title} computes several slots with one linear: export it with form dense"
        )
    grouped = any(len(pair.u) > 1 for pair in pairs.values())
    sharing = any(target.shape.slot(*key).sharing > 1 for key in pairs)
    if grouped and sharing:
        raise InputError(
            "no layout holds both factors per head and layers that share a basis: use form dense"
        )
    language = target.family.task == "language"
    name = "palu" if grouped else "basis_sharing" if sharing else "svd_llm" if language else "asvd"
    return importers()[name]


def _rest(model: Any, target: Target, factored: set[str]) -> dict[str, torch.Tensor]:
    """Every weight of the model that belongs to none of these modules, once."""
    outside = tuple(f"{path}." for path in factored)
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in target.tied and not name.startswith(outside or ("/",))
    }


def _merged(model: Any, target: Target, pairs: Mapping[tuple[int, str], Pair]) -> dict[str, torch.Tensor]:
    """Dense weights of all factored linears and what else the model holds."""
    tensors: dict[str, torch.Tensor] = {}
    for (layer, name), pair in pairs.items():
        if pair.bias is not None and _dense_bias(target, layer, name) not in target.expected:
            raise CheckpointError(
                f"L{layer + 1}.{name} has a bias that {target.family.title} has no place for: use form factors"
            )
        path = target.module(layer, name)
        tensors[f"{path}.weight"] = product(pair)
        if target.family.transposed and not _is_fused(target, name):
            tensors[f"{path}.weight"] = tensors[f"{path}.weight"].T
        if pair.bias is not None:
            tensors[f"{path}.bias"] = pair.bias
    everything = {**_rest(model, target, {target.module(*key) for key in pairs}), **tensors}
    return _fused(everything, target)


def _fused(tensors: dict[str, torch.Tensor], target: Target) -> dict[str, torch.Tensor]:
    """Slots that the dense model computes with one linear, side by side again."""
    for layer in range(len(target.shape.layers)):
        for group in target.family.fused:
            owner = target.module(layer, group[0]).rpartition(".")[0]
            for part in ("weight", "bias"):
                parts = [tensors.pop(f"{target.module(layer, name)}.{part}", None) for name in group]
                given = [tensor for tensor in parts if tensor is not None]
                if given:
                    whole = torch.cat(given)
                    turned = target.family.transposed and part == "weight"
                    tensors[f"{owner}.{part}"] = whole.T if turned else whole
    return tensors


def _dense_bias(target: Target, layer: int, name: str) -> str:
    """What the dense model calls the bias that a slot is part of."""
    path = target.module(layer, name)
    return f"{path.rpartition('.')[0] if _is_fused(target, name) else path}.bias"


def _is_fused(target: Target, name: str) -> bool:
    return any(name in group for group in target.family.fused)
