"""Every spectrum of a model: one decomposition per matrix, kept on disk by content hash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flashsvd.errors import CheckpointError
from flashsvd.methods.base import Method, Spectrum
from flashsvd.models.linears import linear_of
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.paths import home

Progress = Callable[[str, float], None]
"""Called with a stage in words and the share of it done, from 0 to 1. May raise Cancelled."""

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
    loaded: LoadedModel, method: Method, *, cache: Path | None = None, progress: Progress | None = None
) -> Spectra:
    """Decomposes every matrix of a dense model once; any rank is then a slice.

    Args:
        cache: folder of spectra by content hash; the user's cache folder by default.

    Raises:
        CheckpointError: a weight holds NaN or infinity.
    """
    folder = cache or home() / "spectra"
    by_slot: dict[tuple[int, str], Spectrum] = {}
    computed = 0
    slots = list(loaded.shape)
    for done, (layer, slot) in enumerate(slots):
        if progress:
            progress("Decomposing the weights", done / len(slots))
        weight = weight_of(loaded, layer, slot)
        if not torch.isfinite(weight).all():
            raise CheckpointError(
                f"the weight of L{layer + 1}.{slot.name} holds NaN or infinity: check the checkpoint"
            )
        units = weight.reshape(slot.units, slot.unit_out, slot.in_features)
        wide = units if units.dtype == torch.float64 else units.float()
        file = folder / f"{_digest(wide, method)}.safetensors"
        spectrum = _read(file, wide)
        if spectrum is None:
            spectrum = method.decompose(wide)
            computed += 1
            _write(file, spectrum)
        by_slot[layer, slot.name] = spectrum
    if computed:
        _trim(folder)
    if progress:
        progress("Decomposing the weights", 1.0)
    return Spectra(loaded.shape, method.name, by_slot, computed)


def _digest(weight: torch.Tensor, method: Method) -> str:
    digest = hashlib.sha256(f"spectrum/1 {method.name} {tuple(weight.shape)} {weight.dtype}".encode())
    digest.update(weight.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _read(file: Path, like: torch.Tensor) -> Spectrum | None:
    if not file.is_file():
        return None
    try:
        tensors = load_file(file, device=str(like.device))
        os.utime(file)
        return Spectrum(tensors["u"], tensors["sigma"], tensors["v"])
    except (SafetensorError, KeyError, OSError):
        # A cut-off file is no reason to stop: it is computed again and replaced.
        return None


def _write(file: Path, spectrum: Spectrum) -> None:
    """Under a temporary name first: another process may read this folder. A full disk costs the cache only."""
    tensors = {"u": spectrum.u, "sigma": spectrum.sigma, "v": spectrum.v}
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
