"""Errors from singular values alone against those of the matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.errors import PlanError
from flashsvd.measure.layer_error import layer_errors
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import RankPlan

SHAPE = ModelShape("toy", 8, 2, 2, 4, 16, ((Slot("q", 8, 8, heads=2), Slot("up", 12, 8)),))


def relative_error(
    weight: np.ndarray[Any, Any], inputs: np.ndarray[Any, Any], ranks: tuple[int | None, ...]
) -> float:
    """‖X(W - Ŵ)ᵀ‖ / ‖X·Wᵀ‖, with every unit [units, m, n] cut in the norm of W·M, M·Mᵀ = XᵀX."""
    root = np.linalg.cholesky(inputs.T @ inputs)
    lost = []
    for unit, rank in zip(weight, ranks, strict=True):
        u, s, z = np.linalg.svd(unit @ root, full_matrices=False)
        cut = (u[:, :rank] * s[:rank]) @ z[:rank] @ np.linalg.inv(root)
        lost.append(unit - (unit if rank is None else cut))
    return float(np.linalg.norm(np.stack(lost) @ inputs.T) / np.linalg.norm(weight @ inputs.T))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 9))
def test_errors_of_outputs_are_exact_for_whitening(first: int, second: int, up: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(50, 8)) * np.geomspace(1, 0.1, 8)
    weights = {"q": random.normal(size=(2, 4, 8)), "up": random.normal(size=(1, 12, 8))}
    root = np.linalg.cholesky(inputs.T @ inputs)
    sigmas = {(0, name): np.linalg.svd(w @ root, compute_uv=False) for name, w in weights.items()}
    ranks = {"q": (first, second), "up": (up,)}
    plan = RankPlan(SHAPE, (tuple(ranks.values()),))
    found = layer_errors(sigmas, plan)
    for name, weight in weights.items():
        assert found[0, name] == pytest.approx(relative_error(weight, inputs, ranks[name]), rel=1e-9)
    # The mean of the units' own relative errors is another number.
    own = [relative_error(weights["q"][i : i + 1], inputs, (ranks["q"][i],)) for i in range(2)]
    assert abs(found[0, "q"] - np.mean(own)) > 1e-6


def test_dense_units_cost_nothing() -> None:
    sigmas = {(0, "q"): np.ones((2, 4)), (0, "up"): np.zeros((1, 8))}
    assert layer_errors(sigmas, RankPlan.dense(SHAPE)) == {(0, "q"): 0.0, (0, "up"): 0.0}
    half = RankPlan(SHAPE, (((1, None), (2,)),))
    found = layer_errors(sigmas, half)
    assert found[0, "q"] == pytest.approx((3 / 8) ** 0.5) and found[0, "up"] == 0
    assert layer_errors(sigmas, RankPlan.full_rank(SHAPE))[0, "q"] == 0


def test_singular_values_of_another_model_are_refused() -> None:
    with pytest.raises(PlanError, match=r"L1\.q: the plan has 2 unit\(s\) but the singular values are for 1"):
        layer_errors({(0, "q"): np.ones((1, 8))}, RankPlan.dense(SHAPE))
    with pytest.raises(PlanError, match=r"L1\.q.* are for 0"):
        layer_errors({}, RankPlan.dense(SHAPE))
