"""ASVD's sensitivity-based truncation rank search (arXiv 2312.05821, section 3.3), given what was measured."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flashsvd.allocate.costs import Budget, Costs
from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import Rank, RankPlan, rank_for_keep

Sensitivity = Mapping[tuple[int, str], Mapping[float, float]]
"""By (layer, slot): the model's loss with that slot alone truncated to a keep, at several keeps."""


def sensitivity_search(shape: ModelShape, table: Sensitivity, costs: Costs, budget: Budget) -> RankPlan:
    """One threshold for the whole model: every slot takes the smallest keep whose measured loss is within it.

    The threshold is the lowest, found by bisection over the measured losses, at which the plan fits the budget; a
    slot with no keep within it stays dense. All units of a slot get the same keep.

    Raises:
        PlanError: a slot was not measured, a loss is not finite, the budget counts another thing than the costs, or
            it is below the plan with every slot at its smallest keep.
    """
    if costs.kind != budget.kind:
        raise PlanError(f"the budget is in {budget.kind} but the costs are in {costs.kind}: give both in one")
    for layer, slot in shape:
        losses = table.get((layer, slot.name))
        place = f"L{layer + 1}.{slot.name}"
        if not losses:
            raise PlanError(f"no measured losses for {place}: probe every slot of the model")
        if not all(np.isfinite(loss) for loss in losses.values()):
            raise PlanError(f"a measured loss of {place} is NaN or infinity: probe it again")
    thresholds = sorted({loss for losses in table.values() for loss in losses.values()})

    def plan_at(threshold: float) -> RankPlan:
        def rank(layer: int, slot: Slot, unit: int) -> Rank:
            within = [keep for keep, loss in table[layer, slot.name].items() if loss <= threshold]
            return rank_for_keep(slot, min(within)) if within else None

        return RankPlan.build(shape, rank)

    # Groups that share a factor are of one keep as soon as their layers are measured together.
    low, high = 0, len(thresholds) - 1
    if costs.of_plan(RankPlan.dense(shape)) <= budget.left:
        return RankPlan.dense(shape)
    least = costs.of_plan(plan_at(thresholds[high]))
    if least > budget.left:
        raise PlanError(
            f"no measured keep fits {budget.value:,.0f} {budget.kind}: with every slot at its smallest keep the plan "
            f"needs {least + budget.fixed:,.0f}; probe smaller keeps"
        )
    while low < high:
        middle = (low + high) // 2
        if costs.of_plan(plan_at(thresholds[middle])) <= budget.left:
            high = middle
        else:
            low = middle + 1
    return plan_at(thresholds[low])
