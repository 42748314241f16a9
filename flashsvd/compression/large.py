"""A model compressed block by block straight into a checkpoint, when it is too large for the GPU or for memory."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from flashsvd.engines.build import check_engine, exchange_linears
from flashsvd.engines.hub import mark
from flashsvd.errors import InputError
from flashsvd.factors import LowRank, factor_slot
from flashsvd.folders import check_free, new_folder
from flashsvd.methods.base import Method
from flashsvd.models.companions import save_companions
from flashsvd.models.inputs import Batch
from flashsvd.models.linears import linear_of
from flashsvd.models.load import LoadedModel, load
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.spectra import decompose_slot, weight_of
from flashsvd.stats.accumulate import Taps, layer_stats, points
from flashsvd.stats.base import InputStats
from flashsvd.stats.layerwise import Layer, walk


def compress_large(
    source: Path | str | LoadedModel,
    plan: RankPlan,
    method: Method,
    batches: Iterable[Batch],
    out: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    engine: str = "lowrank",
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Writes the compressed checkpoint of a model; one block at a time is on the device.

    Every block is moved to the device, run on the calibration text, decomposed and cut to the plan's ranks, written
    to a file of its own, and given up. The result is what `flashsvd.build` and save_pretrained make of the whole
    model, and opens with `flashsvd.load_compressed`. Hidden states are kept beside the files meanwhile: 2 GB for 128
    sequences of 2048 tokens at width 4096 in bf16.

    Args:
        source: a model's folder, name, or a loaded model, which is left as it is.
        batches: calibration text; not looked at where the method needs none.
        out: the folder to make. It is there whole or not at all.
        dtype: of a source that is not loaded; its own by default.
        engine: what the checkpoint opens with.
        force: replace a model that is there.

    Raises:
        InputError: `out` holds files, or a method that needs more than one layer at a time
            (gradients, or layers that share a basis).
        PlanError: the plan is for another model.
        CheckpointError: a weight holds NaN or infinity, and the message names it; or the disk is full.
        NonFiniteError: an input does.
    """
    check_engine(engine)
    _check_method(method, plan)
    check_free(out, force=force)
    loaded = _own(source, plan, dtype)
    plan.check_fits(loaded.shape)
    with new_folder(out, force=force) as partial:
        _write(loaded, plan, method, list(batches), partial, torch.device(device), engine, progress)
    return out


def _check_method(method: Method, plan: RankPlan) -> None:
    if "fisher" in method.needs:
        raise InputError(
            f"{method.title} needs gradients of the whole model: compress it in memory, or use another method"
        )
    if method.group > 1 or any(slot.sharing > 1 for _, slot in plan.shape):
        raise InputError(
            f"{method.title} with layers that share a basis needs several layers at once: compress the model in "
            "memory, or use another method"
        )


def _own(source: Path | str | LoadedModel, plan: RankPlan, dtype: torch.dtype | None) -> LoadedModel:
    """A model that may be taken apart: other modules and Parameters than the caller's, the same memory."""
    per_head = plan.shape.per_head
    if not isinstance(source, LoadedModel):
        folder = Path(source)
        if dtype is None and (folder / "config.json").is_file():
            dtype = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).dtype
        return load(str(source), dtype=dtype or torch.float32, per_head=per_head)
    memo: dict[int, Any] = {
        id(one): nn.Parameter(one.detach(), requires_grad=False) for one in source.model.parameters()
    }
    memo |= {id(one): one for one in source.model.buffers()}
    model = copy.deepcopy(source.model, memo)
    return dataclasses.replace(source, model=model, shape=source.shape.with_per_head(per_head))


def _write(
    loaded: LoadedModel,
    plan: RankPlan,
    method: Method,
    batches: list[Batch],
    folder: Path,
    device: torch.device,
    engine: str,
    progress: Progress | None,
) -> None:
    model = loaded.model
    blocks = loaded.family.layers(model.base_model)
    names = {id(module): name for name, module in model.named_modules()}
    prefixes = [f"{names[id(block)]}." for block in blocks]
    files = _Files(folder, len(blocks) + 1)
    biased = False
    for index, stats in _layers(loaded, method, batches, folder, device, progress):
        factors = _factors(loaded, plan, method, index, stats)
        # Of one method, either every factored linear has a shift or none has.
        biased = _exchange(loaded, plan, index, factors) or biased
        state = blocks[index].state_dict()
        files.write({f"{prefixes[index]}{name}": tensor for name, tensor in state.items()})
        del state, factors, stats
        blocks[index].to_empty(device="meta")
    tied = getattr(model, "all_tied_weights_keys", {})
    files.write(
        {
            name: tensor
            for name, tensor in model.state_dict().items()
            if not name.startswith(tuple(prefixes)) and name not in tied
        }
    )
    files.finish()
    mark(model, plan, method.spec, engine, biased=biased)
    model.config.dtype = model.dtype
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    save_companions(loaded, folder)
    if progress:
        progress("Writing the checkpoint", 1.0)


def _layers(
    loaded: LoadedModel,
    method: Method,
    batches: list[Batch],
    folder: Path,
    device: torch.device,
    progress: Progress | None,
) -> Iterator[tuple[int, dict[str, InputStats]]]:
    """Every block in turn, on the device, with the statistics of its slots."""
    shape, base = loaded.shape, loaded.model.base_model
    if not method.needs:
        blocks = loaded.family.layers(base)
        for index, block in enumerate(blocks):
            if progress:
                progress(f"Layer {index + 1} of {len(blocks)}", index / len(blocks))
            block.to(device)
            yield index, {}
        return
    layers: Iterator[Layer] = walk(loaded, batches, folder=folder, device=device, progress=progress)
    for layer in layers:
        layer.block.to(device)
        with Taps(points(base, loaded.family, shape, [layer.index]), method.needs) as taps:
            layer.advance(taps)
        yield layer.index, layer_stats(taps, shape, layer.index)


def _factors(
    loaded: LoadedModel, plan: RankPlan, method: Method, layer: int, stats: dict[str, InputStats]
) -> dict[str, LowRank]:
    """The factors of the slots of one layer that the plan does not leave dense."""
    found = {}
    for slot in plan.shape.layers[layer]:
        ranks = plan.get(layer, slot.name)
        if all(rank is None for rank in ranks):
            continue
        weight = weight_of(loaded, layer, slot)
        spectrum = decompose_slot(weight, slot, method, stats.get(slot.name), layer=layer)
        factor = factor_slot(slot, spectrum, ranks, weight)
        if factor is not None:
            found[slot.name] = factor
    return found


def _exchange(loaded: LoadedModel, plan: RankPlan, layer: int, factors: dict[str, LowRank]) -> bool:
    """Puts the factors of one layer in the place of its linears. Returns whether they have a bias of their own."""
    base = loaded.model.base_model
    biases = {name: linear_of(base, loaded.family, loaded.shape, layer, name).bias for name in factors}
    biased = any(factor.shift is not None for factor in factors.values())
    only = RankPlan(
        plan.shape,
        tuple(
            row if index == layer else tuple((None,) * len(ranks) for ranks in row)
            for index, row in enumerate(plan.ranks)
        ),
    )
    exchange_linears(loaded.model, loaded.family, only, biased=biased)
    for name, factor in factors.items():
        module = base.get_submodule(loaded.family.path(layer, name))
        module.U = nn.Parameter(factor.u, requires_grad=False)
        module.V = nn.Parameter(factor.v, requires_grad=False)
        if factor.shift is not None:
            dense = biases[name]
            shifted = factor.shift + dense if isinstance(dense, torch.Tensor) else factor.shift
            module.bias = nn.Parameter(shifted, requires_grad=False)
    return biased


class _Files:
    """The shards of one checkpoint and their index."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count
        self._places: dict[str, str] = {}
        self._written, self._bytes = 0, 0

    def write(self, tensors: dict[str, torch.Tensor]) -> None:
        """The next shard."""
        self._written += 1
        name = f"model-{self._written:05d}-of-{self._count:05d}.safetensors"
        # Copies: parts of a fused linear are views of one memory, which safetensors would refuse.
        own = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
        save_file(own, self._folder / name, {"format": "pt"})
        self._places |= dict.fromkeys(own, name)
        self._bytes += sum(tensor.nbytes for tensor in own.values())

    def finish(self) -> None:
        index = {"metadata": {"total_size": self._bytes}, "weight_map": self._places}
        file = self._folder / "model.safetensors.index.json"
        file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
