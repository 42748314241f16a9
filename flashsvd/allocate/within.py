"""The plan that cuts off least within a budget, from singular values alone: no forward pass, no text."""

from __future__ import annotations

import numpy as np

from flashsvd.allocate.costs import Budget, Costs
from flashsvd.allocate.greedy import allocate
from flashsvd.allocate.spectral import SingularValues, relative_tails
from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan


def least_cut(
    shape: ModelShape, sigmas: SingularValues, budget: Budget, costs: Costs, *, step: int | None = None
) -> RankPlan:
    """The plan of least tail energy (`tail_energy`) that costs at most a budget, up to less than one step of a rank.

    step: between the ranks tried, see `flashsvd.allocate.costs.step_of`.

    Raises:
        PlanError: a slot has no singular values, or no plan is so cheap; the message says what the least costs.
    """
    for layer, slot in shape:
        if len(sigmas.get((layer, slot.name), ())) != slot.units:
            raise PlanError(
                f"no singular values for L{layer + 1}.{slot.name}: compute this model's spectra first"
            )
    wanted = {(layer, slot.name): sigmas[layer, slot.name] for layer, slot in shape}
    energies = {key: float(np.square(values).sum()) for key, values in wanted.items()}
    whole = sum(energies.values()) or 1.0
    losses = {key: tail * (energies[key] / whole) for key, tail in relative_tails(wanted).items()}
    return allocate(shape, losses, costs, budget, step=step)
