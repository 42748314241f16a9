"""What the inputs of a linear were on the calibration text, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from flashsvd.models.shape import ModelShape

Need = Literal["gram", "mean", "mean_abs", "fisher"]
"""A statistic of one linear y = x·Wᵀ + b with inputs X [tokens, n]: the Gram matrix XᵀX, the mean of x, the mean of
|x|, and the sum over sequences and output rows of the squared gradient of the loss with respect to W."""

NEEDS: tuple[Need, ...] = ("gram", "mean", "mean_abs", "fisher")


@dataclass(frozen=True)
class InputStats:
    """The statistics of one slot; None where not asked for. Padding is not counted.

    gram [n, n] uncentred and not divided by `tokens`; mean [n]; mean_abs [n]; fisher [units, n], each unit's own
    rows alone. All float64. Slots that share their input (q, k, v; gate, up) share gram, mean and mean_abs: they
    hold the same tensors.
    """

    tokens: int
    gram: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    mean_abs: torch.Tensor | None = None
    fisher: torch.Tensor | None = None


@dataclass(frozen=True)
class Statistics:
    """The statistics of every slot of a model, by (layer, slot name).

    digest: content hash of the weights, the calibration batches and the needs; equal digests mean equal statistics.
    """

    shape: ModelShape
    needs: frozenset[Need]
    tokens: int
    sequences: int
    by_slot: Mapping[tuple[int, str], InputStats]
    digest: str
