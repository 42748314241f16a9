"""The least loss within a budget: always the affordable step that gains most for what it costs.

Every unit starts at its cheapest choice. Each turn takes, of all moves of one unit to a dearer choice that still fit,
the one with the largest gain per cost. Where losses fall ever more slowly that is the usual greedy, and exact for
steps of equal cost; moves may also skip choices, which is how a unit gets over a loss that is not convex to dense.

More budget never gives a larger loss. Take the first turn in which the larger budget moves otherwise: its move did
not fit the smaller one, and its gain per cost is at least that of all moves that are left there (a move that
skips a better one does not exist), so it alone gains more than the whole rest of the smaller budget could. Swaps
afterwards would break that, and have little to win: what is lost to the optimum is less than one move.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashsvd.allocate.costs import Budget, Costs, choices
from flashsvd.allocate.spectral import Losses
from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import Rank, RankPlan


@dataclass
class _Unit:
    """One choice of rank: a unit of a slot, in all layers that share the slot's right factor.

    cost, loss, ranks: of the choices that no other beats in both, by rising cost. at: the one taken.
    """

    layers: tuple[int, ...]
    slot: str
    unit: int
    ranks: tuple[Rank, ...]
    cost: NDArray[np.float64]
    loss: NDArray[np.float64]
    at: int = 0

    def price(self, target: int) -> float:
        return float(self.cost[target] - self.cost[self.at])

    def best_move(self, room: float) -> tuple[float, int] | None:
        """Gain per cost and target of the best move that costs at most `room`; of equal ones the dearest."""
        here = self.at
        price = self.cost[here + 1 :] - self.cost[here]
        price = price[: np.searchsorted(price, room, side="right")]
        if not len(price):
            return None
        density = (self.loss[here] - self.loss[here + 1 : here + 1 + len(price)]) / price
        best = len(price) - 1 - int(np.argmax(density[::-1]))
        return float(density[best]), here + 1 + best


def allocate(
    shape: ModelShape, losses: Losses, costs: Costs, budget: Budget, *, step: int | None = None
) -> RankPlan:
    """The plan of least total loss that costs at most `budget.left`, up to less than one move.

    losses: by (layer, slot) [units, full rank + 1], the loss at each rank; dense loses nothing. step: between the
    ranks tried, see `flashsvd.allocate.costs.step_of`.

    Raises:
        PlanError: the budget counts another thing than the costs, is below the cheapest plan there is (the message
            says what that costs), or a slot has no losses.
    """
    if costs.kind != budget.kind:
        raise PlanError(f"the budget is in {budget.kind} but the costs are in {costs.kind}: give both in one")
    units = list(_units(shape, losses, costs, step))
    if costs.of_plan(RankPlan.dense(shape)) <= budget.left:
        return RankPlan.dense(shape)
    least = sum(float(unit.cost[0]) for unit in units)
    room = budget.left - least
    if room < 0:
        raise PlanError(
            f"no plan fits {_amount(budget.value)} {budget.kind}: the least possible is "
            f"{_amount(least + budget.fixed)}"
            + (f", {_amount(budget.fixed)} of it for what is not factored" if budget.fixed else "")
        )
    _spend(units, room)
    taken = {(layer, unit.slot, unit.unit): unit.ranks[unit.at] for unit in units for layer in unit.layers}
    return RankPlan.build(shape, lambda layer, slot, unit: taken[layer, slot.name, unit])


def total_loss(plan: RankPlan, losses: Losses) -> float:
    """Σ loss of every unit at its rank under a plan."""
    return float(
        sum(
            losses[layer, slot.name][unit, rank]
            for layer, slot in plan.shape
            for unit, rank in enumerate(plan.get(layer, slot.name))
            if rank is not None
        )
    )


def _spend(units: list[_Unit], room: float) -> None:
    """Makes moves, best gain per cost first, until none fits."""
    heap: list[tuple[float, int, int]] = []

    def push(index: int) -> None:
        move = units[index].best_move(room)
        if move is not None:
            heapq.heappush(heap, (-move[0], index, move[1]))

    for index in range(len(units)):
        push(index)
    while heap:
        _, index, target = heapq.heappop(heap)
        unit = units[index]
        price = unit.price(target)
        if price <= room:
            unit.at = target
            room -= price
        push(index)


def _units(shape: ModelShape, losses: Losses, costs: Costs, step: int | None) -> Iterator[_Unit]:
    for first, slot in shape:
        _check(losses, first, slot)
        layers, name = tuple(shape.group(first, slot.name)), slot.name
        if layers[0] != first:
            continue
        ranks = choices(slot, step)
        price = np.array([sum(costs.of_unit(layer, slot, rank) for layer in layers) for rank in ranks])
        columns = [rank for rank in ranks if rank is not None]
        lost = np.sum([losses[layer, name][:, columns] for layer in layers], axis=0)
        for unit in range(slot.units):
            loss = np.array([*lost[unit], 0.0])
            kept = _undominated(price, loss)
            yield _Unit(layers, name, unit, tuple(ranks[i] for i in kept), price[kept], loss[kept])


def _undominated(cost: NDArray[np.float64], loss: NDArray[np.float64]) -> list[int]:
    kept: list[int] = []
    for index in np.lexsort((loss, cost)):
        if not kept or loss[index] < loss[kept[-1]]:
            kept.append(int(index))
    return kept


def _check(losses: Losses, layer: int, slot: Slot) -> None:
    values = losses.get((layer, slot.name))
    place = f"L{layer + 1}.{slot.name}"
    if values is None or values.shape != (slot.units, slot.full_rank + 1):
        raise PlanError(
            f"no losses for {place}: expected {slot.units} unit(s) at ranks 0 to {slot.full_rank}"
        )
    if not np.isfinite(values).all():
        raise PlanError(f"the losses of {place} hold NaN or infinity: probe it again")


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
