"""Energy curves for the browser: the same numbers as the library's, small enough for any model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.allocate import tail_energy, uniform
from flashsvd.errors import PlanError
from flashsvd.ranks import RankPlan
from flashsvd.tail_curves import tail_curves
from tests.app import fakes

SIGMAS = fakes.sigmas()
EXACT = 1e-5
"""Each unit's tail is rounded to a 65535th of its energy."""


@given(st.floats(0.01, 1))
def test_every_rank_a_knot_gives_tail_energy(keep: float) -> None:
    curves, plan = tail_curves(fakes.SHAPE, SIGMAS), uniform(fakes.SHAPE, keep)
    assert curves.cut(plan) == pytest.approx(tail_energy(plan, SIGMAS), abs=EXACT)


def test_the_tolerance_catches_a_rank_that_is_off_by_one() -> None:
    curves = tail_curves(fakes.SHAPE, SIGMAS)
    plan = uniform(fakes.SHAPE, 0.5)
    wrong = plan.replace(3, "o", (plan.get(3, "o")[0] + 1,))  # type: ignore[operator]
    assert abs(curves.cut(wrong) - tail_energy(plan, SIGMAS)) > EXACT


@given(st.floats(0.05, 1))
def test_few_knots_never_promise_too_little_loss_and_stay_close(keep: float) -> None:
    curves, plan = tail_curves(fakes.SHAPE, SIGMAS, limit=3_500), uniform(fakes.SHAPE, keep)
    assert len(curves.values) <= 3_500
    exact = tail_energy(plan, SIGMAS)
    assert exact - EXACT <= curves.cut(plan) <= exact + 0.01


def test_a_large_model_stays_small() -> None:
    shape = fakes.bert_shape(24, 1024, 16)
    curves = tail_curves(shape, fakes.sigmas(shape))
    assert len(curves.values) <= 200_000 and curves.totals.sum() == pytest.approx(1)
    assert len(curves.to_json()["totals"]) == sum(slot.units for _, slot in shape)


def test_a_matrix_of_zeros_cuts_nothing() -> None:
    zeros = {key: np.zeros_like(sigma) for key, sigma in SIGMAS.items()}
    assert tail_curves(fakes.SHAPE, zeros).cut(uniform(fakes.SHAPE, 0.3)) == 0.0


def test_missing_singular_values_are_named() -> None:
    with pytest.raises(PlanError, match=r"L1\.q"):
        tail_curves(fakes.SHAPE, {})
    assert tail_curves(fakes.SHAPE, SIGMAS).cut(RankPlan.dense(fakes.SHAPE)) == 0.0
