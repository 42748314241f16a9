"""The allocator: within budget, monotone, and the optimum where that is known."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashsvd.allocate import Budget, Costs, allocate, choices, losses_from, total_loss
from flashsvd.allocate.costs import SlotLatency
from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import RankPlan

COSTS = Costs.parameters()


def model(layers: int, *slots: Slot) -> ModelShape:
    return ModelShape("bert", 32, 2, 2, 16, 64, (slots,) * layers)


SMALL = model(2, Slot("q", 32, 32, heads=2), Slot("o", 32, 32), Slot("up", 64, 32))


@st.composite
def falling(draw: st.DrawFn, shape: ModelShape, convex: bool = False) -> dict:
    """Losses that fall with the rank; convex ones by ever smaller steps."""
    losses = {}
    for layer, slot in shape:
        rows = []
        for _ in range(slot.units):
            steps = draw(st.lists(st.integers(0, 1000), min_size=slot.full_rank, max_size=slot.full_rank))
            steps = sorted(steps) if convex else steps
            rows.append([*np.cumsum(steps)[::-1], 0])
        losses[layer, slot.name] = np.array(rows, dtype=float)
    return losses


def least(shape: ModelShape, step: int) -> float:
    return COSTS.of_plan(RankPlan.build(shape, lambda layer, slot, unit: choices(slot, step)[0]))


@settings(max_examples=60)
@given(falling(SMALL), st.floats(0, 1), st.floats(0, 1))
def test_within_budget_and_more_budget_never_loses_more(losses: dict, one: float, other: float) -> None:
    floor = least(SMALL, 4)
    span = SMALL.dense_parameters - floor
    amounts = sorted(floor + span * share for share in (one, other))
    plans = [allocate(SMALL, losses, COSTS, Budget("parameters", amount), step=4) for amount in amounts]
    for plan, amount in zip(plans, amounts, strict=True):
        assert plan.kept_parameters <= amount
    assert total_loss(plans[1], losses) <= total_loss(plans[0], losses) + 1e-9


SQUARE = model(2, Slot("o", 16, 16), Slot("p", 16, 16))


def brute_force(shape: ModelShape, losses: dict, budget: float, step: int) -> float:
    best = float("inf")
    slots = list(shape)
    for ranks in itertools.product(*(choices(slot, step) for _, slot in slots)):
        chosen = {(layer, slot.name): rank for (layer, slot), rank in zip(slots, ranks, strict=True)}
        plan = RankPlan.build(shape, lambda layer, slot, unit, c=chosen: c[layer, slot.name])
        if plan.kept_parameters <= budget:
            best = min(best, total_loss(plan, losses))
    return best


@settings(max_examples=40)
@given(falling(SQUARE, convex=True), st.floats(0, 1))
def test_equal_costs_give_the_optimum(losses: dict, share: float) -> None:
    # Every step of rank 2 costs 64, dense too: 6 -> 8 = break-even.
    floor = least(SQUARE, 2)
    amount = floor + share * (SQUARE.dense_parameters - floor)
    # At break-even the dense unit stands for rank 8: what it cuts off is nothing, and steps stay convex.
    losses = {key: np.maximum(values - values[:, 8:9], 0) for key, values in losses.items()}
    plan = allocate(SQUARE, losses, COSTS, Budget("parameters", amount), step=2)
    assert total_loss(plan, losses) == pytest.approx(brute_force(SQUARE, losses, amount, 2))


@settings(max_examples=40)
@given(falling(SQUARE), st.floats(0, 1))
def test_any_losses_come_within_one_move_of_the_optimum(losses: dict, share: float) -> None:
    floor = least(SQUARE, 2)
    amount = floor + share * (SQUARE.dense_parameters - floor)
    plan = allocate(SQUARE, losses, COSTS, Budget("parameters", amount), step=2)
    largest = max(values[:, 2].max() for values in losses.values())
    assert total_loss(plan, losses) <= brute_force(SQUARE, losses, amount, 2) + largest + 1e-9


def test_the_jump_to_dense_is_taken_where_ranks_alone_gain_little() -> None:
    losses = {key: np.zeros((slot.units, slot.full_rank + 1)) for key, slot in _slots(SQUARE)}
    losses[0, "o"][0, :-1] = 10.0
    amount = least(SQUARE, 2) + 192
    plan = allocate(SQUARE, losses, COSTS, Budget("parameters", amount), step=2)
    assert plan.get(0, "o") == (None,)
    short = allocate(SQUARE, losses, COSTS, Budget("parameters", amount - 1), step=2)
    assert short.get(0, "o") == (2,)


def test_alpha_moves_ranks_to_the_sensitive_slot() -> None:
    sigmas = {
        key: np.tile(np.geomspace(1, 0.01, slot.full_rank), (slot.units, 1)) for key, slot in _slots(SMALL)
    }
    alphas = dict.fromkeys(sigmas, 1.0)
    budget = Budget.of_keep(SMALL, 0.5)
    even = allocate(SMALL, losses_from(sigmas, alphas), COSTS, budget, step=2)
    tilted = allocate(SMALL, losses_from(sigmas, alphas | {(1, "o"): 1e3}), COSTS, budget, step=2)
    # An allocator that did not look at α would give the same plan twice.
    assert (tilted.get(1, "o")[0] or 99) > (even.get(1, "o")[0] or 99)


def test_a_step_too_many_would_be_seen() -> None:
    losses = {
        key: np.tile(np.arange(slot.full_rank, -1, -1.0), (slot.units, 1)) for key, slot in _slots(SMALL)
    }
    amount = least(SMALL, 4) + 500
    plan = allocate(SMALL, losses, COSTS, Budget("parameters", amount), step=4)
    layer = next(index for index, slot in SMALL if slot.name == "up")
    rank = plan.get(layer, "up")[0]
    assert rank is not None
    assert plan.kept_parameters <= amount
    assert plan.replace(layer, "up", (rank + 4,)).kept_parameters > amount


def test_a_budget_below_the_least_names_it() -> None:
    losses = {key: np.zeros((slot.units, slot.full_rank + 1)) for key, slot in _slots(SMALL)}
    with pytest.raises(PlanError, match=f"the least possible is {int(least(SMALL, 4)):,}"):
        allocate(SMALL, losses, COSTS, Budget("parameters", 10), step=4)
    with pytest.raises(PlanError, match="5,000 of it for what is not factored"):
        allocate(SMALL, losses, COSTS, Budget("parameters", 5010, fixed=5000), step=4)


def test_a_budget_above_dense_is_dense() -> None:
    for loss in (0.0, 1.0):
        losses = {key: np.full((slot.units, slot.full_rank + 1), loss) for key, slot in _slots(SMALL)}
        budget = Budget("parameters", SMALL.dense_parameters)
        assert allocate(SMALL, losses, COSTS, budget) == RankPlan.dense(SMALL)


def test_costs_of_a_plan_are_its_parameters_in_other_units() -> None:
    plan = RankPlan.build(SMALL, lambda layer, slot, unit: 3 + layer + unit)
    assert COSTS.of_plan(plan) == plan.kept_parameters
    assert Costs.bytes("bf16").of_plan(plan) == 2 * plan.kept_parameters
    assert Costs.flops().of_plan(plan) == 2 * plan.kept_parameters


def test_where_factors_are_slower_than_dense_the_slot_stays_dense() -> None:
    table = {slot: SlotLatency((4, 8), (1.0, 2.0), 3.0) for slot in SMALL.layers[0]}
    table[SMALL.layers[0][1]] = SlotLatency((4, 8), (1.0, 2.0), 0.5)
    losses = {key: np.ones((slot.units, slot.full_rank + 1)) for key, slot in _slots(SMALL)}
    plan = allocate(SMALL, losses, Costs.latency(table), Budget("latency_ms", 5.0), step=4)
    assert plan.get(0, "o") == plan.get(1, "o") == (None,)
    assert Costs.latency(table).of_plan(plan) <= 5.0
    assert plan != RankPlan.dense(SMALL)


def test_kinds_must_agree_and_losses_be_whole() -> None:
    losses = {key: np.ones((slot.units, slot.full_rank + 1)) for key, slot in _slots(SMALL)}
    with pytest.raises(PlanError, match="budget is in bytes but the costs are in parameters"):
        allocate(SMALL, losses, COSTS, Budget("bytes", 1e6))
    broken = losses | {(1, "o"): np.full((1, 33), np.nan)}
    with pytest.raises(PlanError, match=r"L2\.o hold NaN"):
        allocate(SMALL, broken, COSTS, Budget.of_keep(SMALL, 0.5))
    del losses[1, "up"]
    with pytest.raises(PlanError, match=r"no losses for L2\.up"):
        allocate(SMALL, losses, COSTS, Budget.of_keep(SMALL, 0.5))


@pytest.mark.parametrize("step", [None, 16])
def test_a_7b_model_head_by_head_takes_seconds(step: int | None) -> None:
    llama = model(
        32,
        *(Slot(name, 4096, 4096, heads=32) for name in "qkv"),
        Slot("o", 4096, 4096),
        Slot("gate", 11008, 4096),
        Slot("up", 11008, 4096),
        Slot("down", 4096, 11008),
    )
    rng = np.random.default_rng(0)
    sigmas = {
        key: np.geomspace(1, 10 ** -rng.uniform(1, 3), slot.full_rank) * np.ones((slot.units, 1))
        for key, slot in _slots(llama)
    }
    losses = losses_from(sigmas, {key: float(rng.uniform(0.1, 10)) for key in sigmas})
    started = time.perf_counter()
    plan = allocate(llama, losses, COSTS, Budget.of_keep(llama, 0.5), step=step)
    assert time.perf_counter() - started < 20
    assert 0.4999 < plan.keep <= 0.5


def _slots(shape: ModelShape) -> list:
    return [((layer, slot.name), slot) for layer, slot in shape]


def test_choices_are_steps_below_break_even_and_dense() -> None:
    assert choices(SQUARE.layers[0][0], 2) == (2, 4, 6, None)
