"""A budget or a rule -> RankPlan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import Rank, RankPlan, rank_for_keep

SingularValues = Mapping[tuple[int, str], NDArray[np.float64]]
"""Singular values by (layer, slot), each [units, rank], largest first."""


@dataclass(frozen=True)
class Rung:
    """One step of the ranks the FlashSVD paper reports for BERT-base (arXiv 2508.01506)."""

    head: int
    feed_forward: int
    output: int
    cut: str


LADDER = (
    Rung(60, 480, 480, "10 %"),
    Rung(56, 384, 384, "25 %"),
    Rung(48, 336, 336, "35 %"),
    Rung(40, 240, 240, "50 %"),
    Rung(32, 192, 192, "60 %"),
)
_LADDER_HEAD_DIM, _LADDER_HIDDEN = 64, 768


def uniform(shape: ModelShape, keep: float) -> RankPlan:
    """The same share of parameters everywhere: rank floor(keep·mn/(m+n)), dense at keep 1.

    Raises:
        PlanError: keep is not above 0 and at most 1.
    """
    return RankPlan.build(shape, lambda layer, slot, unit: rank_for_keep(slot, keep))


def by_role(shape: ModelShape, head: int, feed_forward: int, output: int) -> RankPlan:
    """One rank for q, k, v (per head; times the heads where they are whole), one for up, gate and down, one for o.

    Raises:
        PlanError: a rank below 1 or above full rank; at or above break-even the unit stays dense.
    """

    def rank(layer: int, slot: Slot, unit: int) -> Rank:
        if slot.heads:
            asked = head if slot.per_head else head * slot.heads
        else:
            asked = output if slot.name == "o" else feed_forward
        if not 1 <= asked <= slot.full_rank:
            raise PlanError(
                f"rank for {slot.name} must be from 1 to {slot.full_rank} (full rank), got {asked}"
            )
        return asked

    return RankPlan.build(shape, rank)


def ladder(shape: ModelShape, rung: Rung) -> RankPlan:
    """The published ranks, scaled from BERT-base to this model's head dim and hidden size."""
    width = shape.hidden / _LADDER_HIDDEN
    return by_role(
        shape,
        head=max(1, round(rung.head * shape.head_dim / _LADDER_HEAD_DIM)),
        feed_forward=max(1, round(rung.feed_forward * width)),
        output=max(1, round(rung.output * width)),
    )


def energy(shape: ModelShape, sigmas: SingularValues, share: float) -> RankPlan:
    """The smallest rank of each unit that holds `share` of its squared singular values.

    Raises:
        PlanError: share is not above 0 and at most 1, or a unit's singular values are missing.
    """
    if not 0 < share <= 1:
        raise PlanError(f"energy share must be above 0 and at most 1, got {share:g}")

    def rank(layer: int, slot: Slot, unit: int) -> Rank:
        values = sigmas.get((layer, slot.name))
        if values is None or len(values) != slot.units:
            raise PlanError(
                f"no singular values for L{layer + 1}.{slot.name}: compute this model's spectra first"
            )
        held = np.cumsum(np.square(values[unit]))
        if held[-1] == 0:
            return 1
        return min(int(np.searchsorted(held, share * held[-1])) + 1, slot.full_rank)

    return RankPlan.build(shape, rank)


def tail_energy(plan: RankPlan, sigmas: SingularValues) -> float:
    """Share of all squared singular values that the plan cuts off: Σ tail σ² / Σ σ² (Eckart-Young).

    For plain SVD this is the squared relative error of the weights, with no forward pass.
    """
    cut = total = 0.0
    for layer, slot in plan.shape:
        squares = np.square(sigmas[layer, slot.name])
        total += float(squares.sum())
        for unit, rank in enumerate(plan.get(layer, slot.name)):
            if rank is not None:
                cut += float(squares[unit, rank:].sum())
    return cut / total if total else 0.0
