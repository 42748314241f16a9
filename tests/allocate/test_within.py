"""Least energy cut off within a budget, from singular values alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.allocate import Budget, Costs, energy, tail_energy, uniform
from flashsvd.allocate.within import least_cut
from flashsvd.errors import PlanError
from flashsvd.ranks import RankPlan
from tests.app import fakes

SHAPE, SIGMAS, COSTS = fakes.SHAPE, fakes.sigmas(), Costs.parameters()


@given(st.floats(0.15, 1))
def test_fits_and_cuts_no_more_than_uniform_or_equal_energy(keep: float) -> None:
    plan = least_cut(SHAPE, SIGMAS, Budget.of_keep(SHAPE, keep), COSTS, step=1)
    assert plan.kept_parameters <= keep * SHAPE.dense_parameters
    for other in (uniform(SHAPE, keep), energy(SHAPE, SIGMAS, 0.9)):
        if other.kept_parameters <= plan.kept_parameters:
            assert tail_energy(plan, SIGMAS) <= tail_energy(other, SIGMAS) + 1e-9


def test_bytes_and_parameters_of_the_whole_model_agree() -> None:
    fixed = 1_000_000
    by_count = least_cut(SHAPE, SIGMAS, Budget("parameters", 3_000_000, fixed), COSTS)
    by_bytes = least_cut(SHAPE, SIGMAS, Budget("bytes", 6_000_000, 2 * fixed), Costs.bytes("bf16"))
    assert by_count == by_bytes


def test_all_of_it_is_dense_and_too_little_says_what_the_least_is() -> None:
    assert least_cut(SHAPE, SIGMAS, Budget.of_keep(SHAPE, 1), COSTS) == RankPlan.dense(SHAPE)
    with pytest.raises(PlanError, match="least possible"):
        least_cut(SHAPE, SIGMAS, Budget("parameters", 1000), COSTS)
    with pytest.raises(PlanError, match="compute this model's spectra"):
        least_cut(SHAPE, {}, Budget.of_keep(SHAPE, 0.5), COSTS)
