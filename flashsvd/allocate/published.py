"""Ranks that need no data: one keep everywhere, one rank per role, and the ranks the FlashSVD paper reports."""

from __future__ import annotations

from dataclasses import dataclass

from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import Rank, RankPlan, rank_for_keep


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
