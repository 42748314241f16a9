"""Calibration text -> what the data-aware methods need to know of every linear's inputs, in one pass."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from flashsvd.errors import CheckpointError, InputError
from flashsvd.models.inputs import Batch
from flashsvd.models.load import LoadedModel
from flashsvd.paths import home
from flashsvd.progress import Progress
from flashsvd.stats import cache as disk
from flashsvd.stats.accumulate import (
    Taps,
    evaluating,
    layer_stats,
    model_inputs,
    padding_mask,
    points,
)
from flashsvd.stats.base import NEEDS, InputStats, Need, Statistics
from flashsvd.stats.fisher import FisherTaps, gradients, sequence_losses

_STAGE = "Reading the calibration text"


def collect(
    loaded: LoadedModel,
    batches: Iterable[Batch],
    needs: Collection[Need],
    *,
    cache: Path | None = None,
    low_memory: bool = False,
    progress: Progress | None = None,
) -> Statistics:
    """Statistics of the inputs of every slot of a dense model, in one pass over the batches.

    The model runs in its own dtype; sums of its inputs are of float32 products (float64 ones of a float64 model),
    added up in float64 on its device. Padding does not count, and the model is left as it was found.

    Args:
        batches: input_ids [B, S], attention_mask [B, S] and labels, or whatever else the model takes. Read once,
            to the end, before the model runs: token ids are small, and their hash names the result.
        needs: what to collect. For fisher, see `flashsvd.stats.fisher.sequence_losses` on labels.
        cache: folder of statistics by content hash; the user's cache folder by default. One that has more than
            what is needed serves, too.
        low_memory: one layer at a time, hidden states on disk between the layers; `by_slot` of the result then
            reads from the cache what it is asked for. Not for fisher, which runs back through the whole model.

    Raises:
        InputError: no batch or no unpadded token, an unknown need, fisher of a model without a head or with
            low_memory, or no room for the cache with low_memory.
        NonFiniteError: NaN or infinity in an input, a loss or a gradient; the message names where.
    """
    wanted = _check_needs(needs, low_memory)
    listed = list(batches)
    masks = [padding_mask(batch, number, loaded.device) for number, batch in enumerate(listed)]
    tokens = sum(int(mask.sum()) for mask in masks)
    if not tokens:
        raise InputError(
            f"the calibration text has no tokens ({len(listed)} batches): give at least one batch with an "
            "unpadded token"
        )
    count = sum(int(mask.any(1).sum()) for mask in masks)
    hashes = disk.digests(loaded, listed)
    folder, key = cache or home() / "statistics", hashes.of(wanted)

    def result(by_slot: Mapping[tuple[int, str], InputStats]) -> Statistics:
        if progress:
            progress(_STAGE, 1.0)
        return Statistics(loaded.shape, wanted, tokens, count, by_slot, key)

    stored = disk.find(folder, hashes, loaded.shape, wanted, loaded.device)
    if stored is not None:
        # A file that is cut off within its tensors is found out here: it is no reason to stop.
        with contextlib.suppress(CheckpointError):
            return result(stored if low_memory else dict(stored))
    with evaluating(loaded.model):
        if low_memory:
            _store_layers(loaded, listed, wanted, folder, key, progress)
            return result(disk.StoredStats(folder, key, loaded.shape, wanted, loaded.device))
        by_slot = _run(loaded, listed, masks, wanted, progress)
    _store(loaded, by_slot, folder, key)
    return result(by_slot)


def _check_needs(needs: Collection[Need], low_memory: bool) -> frozenset[Need]:
    wanted = frozenset(needs)
    if not wanted or wanted - set(NEEDS):
        got = ", ".join(sorted(wanted)) or "none"
        raise InputError(f"needs must be some of {', '.join(NEEDS)}, got {got}")
    if low_memory and "fisher" in wanted:
        raise InputError(
            "fisher runs back through the whole model, so it cannot be collected with low_memory: "
            "leave low_memory out, or use a method that does not need fisher"
        )
    return wanted


def _run(
    loaded: LoadedModel,
    batches: Sequence[Batch],
    masks: Sequence[torch.Tensor],
    needs: frozenset[Need],
    progress: Progress | None,
) -> dict[tuple[int, str], InputStats]:
    """The one pass."""
    model, shape, layers = loaded.model, loaded.shape, range(len(loaded.shape.layers))
    fisher = FisherTaps(loaded) if "fisher" in needs else None
    # Without a loss the head is not needed: the logits of a language model can be larger than all the rest.
    runs = model.base_model if fisher is None else model
    with contextlib.ExitStack() as stack:
        taps = stack.enter_context(
            Taps(points(model.base_model, loaded.family, shape, layers), needs - {"fisher"})
        )
        if fisher:
            stack.enter_context(fisher)
            stack.enter_context(gradients())
        else:
            stack.enter_context(torch.no_grad())
        for number, (batch, mask) in enumerate(zip(batches, masks, strict=True)):
            if progress:
                progress(_STAGE, number / len(batches))
            taps.begin(mask)
            if fisher:
                fisher.begin(mask)
            out = runs(**model_inputs(runs, batch, loaded.device))
            taps.end(number)
            if fisher:
                logits = getattr(out, "logits", None)
                if logits is None:
                    raise InputError(
                        f"fisher is of a loss, and {type(model).__name__} has no head to give one: "
                        "load a model with a head"
                    )
                losses = sequence_losses(model, logits, batch, mask)
                fisher.backward(losses.where(mask.any(1), 0), number)
    by_slot = {
        (layer, name): stats for layer in layers for name, stats in layer_stats(taps, shape, layer).items()
    }
    if fisher is None:
        return by_slot
    return {key: dataclasses.replace(stats, fisher=fisher.result(*key)) for key, stats in by_slot.items()}


def _store(
    loaded: LoadedModel, by_slot: Mapping[tuple[int, str], InputStats], folder: Path, key: str
) -> None:
    """A folder that cannot be written, or a full disk, costs the cache only."""
    try:
        for layer, slots in enumerate(loaded.shape.layers):
            stats = {slot.name: by_slot[layer, slot.name] for slot in slots}
            disk.write_layer(folder, key, loaded.shape, layer, stats)
    except InputError:
        disk.drop(folder, key)
    disk.trim(folder, keep=key)


def _store_layers(
    loaded: LoadedModel,
    batches: Sequence[Batch],
    needs: frozenset[Need],
    folder: Path,
    key: str,
    progress: Progress | None,
) -> None:
    """Layer by layer, straight to disk."""
    from flashsvd.stats.layerwise import walk

    try:
        for layer in walk(loaded, batches, progress=progress):
            found = points(loaded.model.base_model, loaded.family, loaded.shape, [layer.index])
            with Taps(found, needs) as taps:
                layer.advance(taps)
            stats = layer_stats(taps, loaded.shape, layer.index)
            disk.write_layer(folder, key, loaded.shape, layer.index, stats)
    except BaseException:
        disk.drop(folder, key)
        raise
    disk.trim(folder, keep=key)


def warnings_for(statistics: Statistics) -> list[str]:
    """What a user should know of the statistics before building on them, one line per distinct problem."""
    if "gram" not in statistics.needs:
        return []
    tokens = statistics.tokens
    short = [(layer, slot) for layer, slot in statistics.shape if slot.in_features > tokens]
    if not short:
        return []
    layer, widest = max(short, key=lambda place: place[1].in_features)
    others = f" and {len(short) - 1} more" if len(short) > 1 else ""
    return [
        f"{tokens} calibration tokens for inputs of width {widest.in_features} (L{layer + 1}.{widest.name}{others}): "
        f"the Gram is singular; give at least {widest.in_features} tokens"
    ]
