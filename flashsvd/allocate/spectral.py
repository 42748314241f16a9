"""What the singular values alone say: ranks by energy, and what a rank loses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import Rank, RankPlan

SingularValues = Mapping[tuple[int, str], NDArray[np.float64]]
"""Singular values by (layer, slot), each [units, rank], largest first."""

Losses = Mapping[tuple[int, str], NDArray[np.float64]]
"""What a rank costs, by (layer, slot): [units, full rank + 1], the loss at rank k in column k. Dense costs nothing."""


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


def relative_tails(sigmas: SingularValues) -> dict[tuple[int, str], NDArray[np.float64]]:
    """Share of a slot's squared singular values that each unit cuts off at rank k: [units, rank + 1] per slot.

    Column 0 sums to 1 over the units, the last column is 0.

    >>> relative_tails({(0, "o"): np.array([[2.0, 1.0, 1.0]])})[0, "o"].round(2).tolist()
    [[1.0, 0.33, 0.17, 0.0]]
    """
    tails = {}
    for key, values in sigmas.items():
        squares = np.square(values.astype(np.float64))
        # Summed from the small end: the last tails are not differences of nearly equal numbers.
        tail = np.concatenate([np.cumsum(squares[:, ::-1], 1)[:, ::-1], np.zeros((len(squares), 1))], 1)
        total = squares.sum()
        tails[key] = tail / total if total else tail
    return tails


def losses_from(
    sigmas: SingularValues, alphas: Mapping[tuple[int, str], float | NDArray[np.float64]]
) -> dict[tuple[int, str], NDArray[np.float64]]:
    """loss(k) = α · tail σ²(k) / total σ² of the slot; α per slot, or one per unit [units].

    Raises:
        PlanError: a slot has no α, or one that is negative or not finite.
    """
    losses = {}
    for key, tail in relative_tails(sigmas).items():
        place = f"L{key[0] + 1}.{key[1]}"
        if key not in alphas:
            raise PlanError(f"no sensitivity for {place}: probe every slot of the model")
        alpha = np.asarray(alphas[key], dtype=np.float64)
        if not (np.isfinite(alpha).all() and (alpha >= 0).all()):
            raise PlanError(f"the sensitivity of {place} must be finite and not negative, got {alpha}")
        losses[key] = tail * alpha.reshape(-1, 1)
    return losses
