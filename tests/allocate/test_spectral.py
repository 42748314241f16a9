"""Losses from singular values, and ASVD's search over measured ones."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.allocate import Budget, Costs, losses_from, relative_tails, step_of, tail_energy, uniform
from flashsvd.allocate.greedy import allocate, total_loss
from flashsvd.allocate.sensitivity import sensitivity_search
from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import RankPlan

SHAPE = ModelShape("bert", 32, 2, 2, 16, 64, ((Slot("q", 32, 32, heads=2), Slot("o", 32, 32)),) * 3)
COSTS = Costs.parameters()
KEYS = [(layer, slot.name) for layer, slot in SHAPE]


def sigmas(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        (layer, slot.name): np.sort(rng.exponential(size=(slot.units, slot.full_rank)))[:, ::-1]
        for layer, slot in SHAPE
    }


def test_losses_are_alpha_times_the_relative_tail() -> None:
    found = sigmas()
    losses = losses_from(found, dict.fromkeys(KEYS, 3.0))
    for key, values in found.items():
        for unit, row in enumerate(values):
            expected = [3 * np.square(row[k:]).sum() / np.square(values).sum() for k in range(len(row) + 1)]
            assert losses[key][unit] == pytest.approx(expected)
        assert losses[key][:, 0].sum() == pytest.approx(3.0)
        assert (losses[key][:, -1] == 0).all()


def test_equal_totals_and_alpha_make_the_loss_the_tail_energy() -> None:
    found = {key: values / np.sqrt(np.square(values).sum()) for key, values in sigmas().items()}
    plan = uniform(SHAPE, 0.4)
    loss = total_loss(plan, losses_from(found, dict.fromkeys(KEYS, 1 / len(KEYS))))
    assert loss == pytest.approx(tail_energy(plan, found))


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_none_is_refused(alpha: float) -> None:
    with pytest.raises(PlanError, match=r"L1\.q must be finite"):
        losses_from(sigmas(), dict.fromkeys(KEYS, 1.0) | {(0, "q"): alpha})
    with pytest.raises(PlanError, match=r"no sensitivity for L1\.q"):
        losses_from(sigmas(), {})


def test_tails_of_zero_weights_are_zero() -> None:
    assert not relative_tails({(0, "o"): np.zeros((1, 4))})[0, "o"].any()


def test_layers_that_share_a_factor_get_one_rank() -> None:
    shared = SHAPE.with_sharing(2, ["o"])
    rng = np.random.default_rng(1)
    losses = {
        (layer, slot.name): np.sort(rng.random((slot.units, slot.full_rank + 1)))[:, ::-1]
        for layer, slot in shared
    }
    for values in losses.values():
        values[:, -1] = 0
    budget = Budget("parameters", 0.5 * shared.dense_parameters)
    plan = allocate(shared, losses, COSTS, budget, step=2)
    assert plan.get(0, "o") == plan.get(1, "o")
    assert plan.kept_parameters <= budget.value
    assert COSTS.of_plan(plan) == pytest.approx(plan.kept_parameters)


def test_the_step_leaves_a_choice_in_small_matrices() -> None:
    assert step_of(Slot("up", 4096, 4096)) == 16
    assert step_of(Slot("q", 4096, 4096, heads=32)) == 8
    assert step_of(Slot("o", 4, 4)) == 1
    with pytest.raises(PlanError, match="at least 1"):
        step_of(Slot("o", 4, 4), 0)


TABLES = st.fixed_dictionaries(
    {key: st.fixed_dictionaries({keep: st.integers(0, 50) for keep in (0.2, 0.5, 0.8)}) for key in KEYS}
)


@given(TABLES, st.floats(0.2, 1.0), st.floats(0.2, 1.0))
def test_the_sensitivity_search_fits_and_a_larger_budget_takes_a_lower_threshold(
    table: dict, one: float, other: float
) -> None:
    spent = []
    for keep in sorted((one, other)):
        budget = Budget.of_keep(SHAPE, keep)
        plan = sensitivity_search(SHAPE, table, COSTS, budget)
        assert plan.kept_parameters <= budget.value
        spent.append(plan.kept_parameters)
    assert spent[0] <= spent[1]


def test_the_sensitivity_search_keeps_what_hurts() -> None:
    table = {key: {0.2: 1.0, 0.5: 0.1} for key in KEYS} | {(1, "o"): {0.2: 9.0, 0.5: 5.0}}
    plan = sensitivity_search(SHAPE, table, COSTS, Budget.of_keep(SHAPE, 0.4))
    assert plan.get(1, "o") == (None,)
    assert plan.get(0, "o") == uniform(SHAPE, 0.2).get(0, "o")


def test_the_sensitivity_search_says_what_it_lacks() -> None:
    table = {key: {0.5: 1.0} for key in KEYS}
    with pytest.raises(PlanError, match="probe smaller keeps"):
        sensitivity_search(SHAPE, table, COSTS, Budget.of_keep(SHAPE, 0.3))
    with pytest.raises(PlanError, match="NaN or infinity"):
        sensitivity_search(SHAPE, table | {(0, "q"): {0.5: float("nan")}}, COSTS, Budget.of_keep(SHAPE, 0.6))
    del table[2, "o"]
    with pytest.raises(PlanError, match=r"no measured losses for L3\.o"):
        sensitivity_search(SHAPE, table, COSTS, Budget.of_keep(SHAPE, 0.6))


def test_a_whole_model_fits_as_it_is() -> None:
    table = {key: {0.5: 1.0} for key in KEYS}
    dense = RankPlan.dense(SHAPE)
    assert sensitivity_search(SHAPE, table, COSTS, Budget("parameters", dense.kept_parameters)) == dense


def test_the_package_never_loads_torch() -> None:
    words = (
        "import sys, flashsvd.allocate, flashsvd.allocate.sensitivity, flashsvd.allocate.amounts; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0
