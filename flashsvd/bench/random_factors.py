"""Factors drawn at random, for benches of speed and memory: a decomposition would cost minutes and change neither."""

from __future__ import annotations

import math

import torch

from flashsvd.methods.base import Spectrum
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import Slot
from flashsvd.spectra import Spectra, weight_of

RANDOM = "random"
"""What stands in the place of a compression method where factors are drawn."""


def random_spectra(loaded: LoadedModel, seed: int) -> Spectra:
    """A "spectrum" of every slot whose product over all ranks has the spread of the dense weight's entries."""
    generator = torch.Generator(loaded.device).manual_seed(seed)
    drawn = {
        (layer, slot.name): _draw(slot, weight_of(loaded, layer, slot), generator)
        for layer, slot in loaded.shape
    }
    return Spectra(loaded.shape, RANDOM, drawn, 0)


def _draw(slot: Slot, weight: torch.Tensor, generator: torch.Generator) -> Spectrum:
    rank = min(slot.unit_out, slot.in_features)

    def normal(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(slot.units, rows, columns, generator=generator, device=weight.device)

    sigma = weight.float().std().expand(slot.units, rank) / math.sqrt(rank)
    return Spectrum(normal(slot.unit_out, rank), sigma, normal(rank, slot.in_features))
