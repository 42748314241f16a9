"""What a plan costs each linear, from singular values alone: no forward pass. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flashsvd.errors import PlanError
from flashsvd.ranks import RankPlan


def layer_errors(
    sigmas: Mapping[tuple[int, str], NDArray[np.float64]], plan: RankPlan
) -> dict[tuple[int, str], float]:
    """The relative error ‖(W - Ŵ)·M‖ / ‖W·M‖ of every slot, from 0 (dense) to 1, by (layer, slot).

    sigmas: singular values of W·M, [units, p], largest first, as `Spectra.sigmas` gives them. Then the error is
    √(Σ tail σ² / Σ σ²) over all units (Eckart and Young, 1936). For plain SVD M is the identity and this is the error
    of the weights; for whitening it is the error of the outputs on the calibration text. Layers that share a basis have
    one error between them.

    Raises:
        PlanError: a slot of the plan has no singular values, or of another number of units.
    """
    found = {}
    for layer, slot in plan.shape:
        key, ranks = (layer, slot.name), plan.get(layer, slot.name)
        if key not in sigmas or len(sigmas[key]) != len(ranks):
            raise PlanError(
                f"L{layer + 1}.{slot.name}: the plan has {len(ranks)} unit(s) but the singular values are for "
                f"{len(sigmas[key]) if key in sigmas else 0}; load the model the way the plan was made"
            )
        squares = np.square(np.asarray(sigmas[key], dtype=np.float64))
        lost = sum(
            float(row[rank:].sum()) for row, rank in zip(squares, ranks, strict=True) if rank is not None
        )
        total = float(squares.sum())
        found[key] = math.sqrt(lost / total) if total > 0 else 0.0
    return found
