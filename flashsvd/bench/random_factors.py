"""Factors drawn at random, for benches of speed and memory: a decomposition would cost minutes and change neither."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from flashsvd.methods.base import Spectrum
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import Slot
from flashsvd.progress import Progress
from flashsvd.results import OWN_TEXT, Calibration
from flashsvd.session import Session
from flashsvd.spectra import Spectra, weight_of

RANDOM = "random"
"""What stands in the place of a compression method where factors are drawn."""


def random_spectra(loaded: LoadedModel, seed: int) -> Spectra:
    """A "spectrum" of every slot whose product over all ranks has the spread of the dense weight's entries.

    Each is drawn when it is asked for, and not kept: at full rank and in float32 those of a model are some three times
    its bfloat16 weights.
    """
    return Spectra(loaded.shape, RANDOM, _Drawn(loaded, seed), 0)


def spectra_of(
    session: Session,
    loaded: LoadedModel,
    method: str,
    seed: int,
    progress: Progress | None,
    calibration: Calibration = OWN_TEXT,
) -> Spectra:
    """Spectra by a method of `flashsvd.methods`, or drawn for "random". Raises what `Session.spectra` raises."""
    if method == RANDOM:
        return random_spectra(loaded, seed)
    return session.spectra(loaded, method, progress, calibration)[0]


class _Drawn(Mapping[tuple[int, str], Spectrum]):
    def __init__(self, loaded: LoadedModel, seed: int) -> None:
        self._loaded = loaded
        self._slots = {(layer, slot.name): slot for layer, slot in loaded.shape}
        first = int(torch.randint(2**48, (), generator=torch.Generator().manual_seed(seed)))
        self._seeds = {key: first + index for index, key in enumerate(self._slots)}

    def __getitem__(self, key: tuple[int, str]) -> Spectrum:
        slot = self._slots[key]
        generator = torch.Generator(self._loaded.device).manual_seed(self._seeds[key])
        return _draw(slot, weight_of(self._loaded, key[0], slot), generator)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)


def _draw(slot: Slot, weight: torch.Tensor, generator: torch.Generator) -> Spectrum:
    rank = min(slot.unit_out, slot.in_features)

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(slot.units, rows, columns, generator=generator, device=weight.device)

    sigma = weight.float().std().expand(slot.units, rank) / math.sqrt(rank)
    return Spectrum(normal(slot.unit_out, rank), sigma, normal(rank, slot.in_features))
