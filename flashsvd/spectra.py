"""Every spectrum of a model: one decomposition per matrix (per group of layers where they share one), kept on disk
by content hash."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flashsvd.errors import CheckpointError, InputError
from flashsvd.methods.base import Method, Spectrum
from flashsvd.models.linears import linear_of
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.paths import home
from flashsvd.progress import Progress
from flashsvd.stats.base import InputStats, Statistics

_CACHE_LIMIT_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Spectra:
    """Spectra of every slot of a model, by (layer, slot name), and how many were computed now."""

    shape: ModelShape
    method: str
    by_slot: Mapping[tuple[int, str], Spectrum]
    computed: int

    def sigmas(self) -> dict[tuple[int, str], NDArray[np.float64]]:
        """Singular values alone, [units, p] each."""
        return {key: spectrum.sigma.double().cpu().numpy() for key, spectrum in self.by_slot.items()}


def weight_of(loaded: LoadedModel, layer: int, slot: Slot) -> torch.Tensor:
    """The dense weight of a slot, [out, in]: the model's own memory, not a copy."""
    weight = linear_of(loaded.model.base_model, loaded.family, loaded.shape, layer, slot.name).weight
    assert isinstance(weight, torch.Tensor)
    return weight


def compute(
    loaded: LoadedModel,
    method: Method,
    statistics: Statistics | None = None,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Spectra:
    """Decomposes every matrix of a dense model once; any rank is then a slice.

    Args:
        statistics: what `method.needs` of the inputs, over the same model.
        cache: folder of spectra by content hash; the user's cache folder by default.

    Raises:
        CheckpointError: a weight holds NaN or infinity, or a matrix cannot be decomposed; the message names it.
        InputError: the method needs statistics that were not given.
    """
    missing = method.needs - (statistics.needs if statistics else frozenset())
    if missing:
        raise InputError(
            f"method {method.name} needs {', '.join(sorted(missing))} of the inputs: "
            "collect them with flashsvd.stats.collect"
        )
    shape = method.shape(loaded.shape)
    folder = cache or home() / "spectra"
    by_slot: dict[tuple[int, str], Spectrum] = {}
    computed = 0
    slots = list(shape)
    for done, (layer, slot) in enumerate(slots):
        if progress:
            progress("Decomposing the weights", done / len(slots))
        if (layer, slot.name) in by_slot:
            continue
        group = shape.group(layer, slot.name)
        weights = [_finite(loaded, index, slot) for index in group]
        stats = _stats_of(statistics, group, slot.name) if method.needs else None
        digest = hashlib.sha256(f"spectrum/2 {method.spec} {slot.units} {len(group)}".encode())
        for weight in weights:
            digest.update(f"{tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(weight.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        if method.needs and statistics:
            digest.update(f"{statistics.digest} {list(group)} {slot.name}".encode())
        file = folder / f"{digest.hexdigest()[:32]}.safetensors"
        spectrum = _read(file, weights[0])
        if spectrum is None:
            spectrum = _decompose(torch.cat(weights), slot, len(group), method, stats, layer)
            computed += 1
            _write(file, spectrum)
        for position, index in enumerate(group):
            by_slot[index, slot.name] = _part(spectrum, position, len(group))
    if computed:
        _trim(folder)
    if progress:
        progress("Decomposing the weights", 1.0)
    return Spectra(shape, method.spec, by_slot, computed)


def decompose_slot(
    weight: torch.Tensor, slot: Slot, method: Method, stats: InputStats | None = None, *, layer: int = 0
) -> Spectrum:
    """The Spectrum of one slot's weight [out, in], float32 at least, of layer `layer` (for messages).

    Raises:
        CheckpointError: it holds NaN or infinity, or cannot be decomposed.
    """
    _check_finite(weight, layer, slot)
    return _decompose(_wide(weight), slot, 1, method, stats, layer)


def _decompose(
    weight: torch.Tensor, slot: Slot, sharing: int, method: Method, stats: InputStats | None, layer: int
) -> Spectrum:
    """weight: [sharing · out, in], the layers of a group one after another."""
    units = weight.reshape(slot.units, sharing * slot.unit_out, slot.in_features)
    try:
        return method.decompose(units, stats)
    except CheckpointError as error:
        raise CheckpointError(f"L{layer + 1}.{slot.name}: {error}") from None
    except torch.linalg.LinAlgError as error:
        raise CheckpointError(
            f"L{layer + 1}.{slot.name}: {method.name} did not converge ({str(error).splitlines()[0]})"
        ) from None


def _part(spectrum: Spectrum, position: int, sharing: int) -> Spectrum:
    """One layer's rows of a group's spectrum; the right factor is the same tensor for all."""
    if sharing == 1:
        return spectrum
    return dataclasses.replace(spectrum, u=spectrum.u.chunk(sharing, 1)[position])


def _stats_of(statistics: Statistics | None, group: range, name: str) -> InputStats:
    """The statistics of a slot; of a group of layers, their sums."""
    assert statistics is not None
    found = [statistics.by_slot[layer, name] for layer in group]
    if len(found) == 1:
        return found[0]
    grams = [one.gram for one in found if one.gram is not None]
    return InputStats(sum(one.tokens for one in found), gram=torch.stack(grams).sum(0) if grams else None)


def _finite(loaded: LoadedModel, layer: int, slot: Slot) -> torch.Tensor:
    weight = weight_of(loaded, layer, slot)
    _check_finite(weight, layer, slot)
    return _wide(weight)


def _check_finite(weight: torch.Tensor, layer: int, slot: Slot) -> None:
    if not torch.isfinite(weight).all():
        raise CheckpointError(
            f"the weight of L{layer + 1}.{slot.name} holds NaN or infinity: check the checkpoint"
        )


def _wide(weight: torch.Tensor) -> torch.Tensor:
    return weight if weight.dtype == torch.float64 else weight.float()


def _read(file: Path, like: torch.Tensor) -> Spectrum | None:
    if not file.is_file():
        return None
    try:
        tensors = load_file(file, device=str(like.device))
        os.utime(file)
        return Spectrum(
            tensors["u"], tensors["sigma"], tensors["v"], tensors.get("scale"), tensors.get("mean")
        )
    except (SafetensorError, KeyError, OSError):
        # A cut-off file is no reason to stop: it is computed again and replaced.
        return None


def _write(file: Path, spectrum: Spectrum) -> None:
    """Under a temporary name first: another process may read this folder. A full disk costs the cache only."""
    fields = {field.name: getattr(spectrum, field.name) for field in dataclasses.fields(spectrum)}
    tensors = {name: tensor for name, tensor in fields.items() if tensor is not None}
    with contextlib.suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
            name = Path(part.name)
        try:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, name)
            name.replace(file)
        finally:
            name.unlink(missing_ok=True)


def _trim(folder: Path) -> None:
    """Drops the spectra unused for longest until the cache is within its limit."""
    with contextlib.suppress(OSError):
        files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > _CACHE_LIMIT_BYTES:
                file.unlink(missing_ok=True)
