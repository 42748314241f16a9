"""What every rank of every unit cuts off, small enough to hand to a browser once."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashsvd.allocate.spectral import SingularValues
from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import RankPlan

LIMIT = 200_000
"""Values of a whole model, two bytes each."""

_LEAST_KNOTS, _STEPS = 17, 65_535


@dataclass(frozen=True)
class TailCurves:
    """Shares of each unit's squared singular values beyond a rank, at a few ranks: its knots.

    knots: by full rank, in rising order from 0 to it. values: of all units in the shape's order, one after another,
    0 to 65535 for 0 to 1. totals: each unit's share of the whole model's squared singular values.
    """

    shape: ModelShape
    knots: dict[int, NDArray[np.int64]]
    values: NDArray[np.uint16]
    totals: NDArray[np.float64]

    def cut(self, plan: RankPlan) -> float:
        """Share of all squared singular values that a plan cuts off: `tail_energy`, up to 1e-5 where every rank is
        a knot, else with straight lines between knots, which are never below the curve."""
        lost, start = 0.0, 0
        for number, (layer, slot, unit) in enumerate(_units(self.shape)):
            knots = self.knots[slot.full_rank]
            rank = plan.get(layer, slot.name)[unit]
            if rank is not None:
                tails = self.values[start : start + len(knots)] / _STEPS
                lost += float(self.totals[number] * np.interp(rank, knots, tails))
            start += len(knots)
        return lost

    def to_json(self) -> dict[str, Any]:
        """Plain data; values as base64 of little-endian 16-bit numbers."""
        return {
            "knots": {str(full): knots.tolist() for full, knots in self.knots.items()},
            "values": base64.b64encode(self.values.astype("<u2").tobytes()).decode("ascii"),
            "totals": [float(f"{total:.7g}") for total in self.totals],
        }


def tail_curves(shape: ModelShape, sigmas: SingularValues, limit: int = LIMIT) -> TailCurves:
    """The curves of a model, every rank a knot as long as they hold at most `limit` values, else fewer knots.

    Raises:
        PlanError: a slot has no singular values.
    """
    knots = _knots(shape, limit)
    values, totals = [], []
    for layer, slot in shape:
        sigma = sigmas.get((layer, slot.name))
        if sigma is None or len(sigma) != slot.units:
            raise PlanError(
                f"no singular values for L{layer + 1}.{slot.name}: compute this model's spectra first"
            )
        squares = np.zeros((slot.units, slot.full_rank + 1))
        held = np.square(sigma[:, : slot.full_rank].astype(np.float64))
        squares[:, : held.shape[1]] = held
        # Summed from the small end: the last tails are not differences of nearly equal numbers.
        tails = np.cumsum(squares[:, ::-1], axis=1)[:, ::-1]
        whole = tails[:, :1]
        shares = np.divide(tails, whole, out=np.zeros_like(tails), where=whole > 0)
        values.append(np.rint(_STEPS * shares[:, knots[slot.full_rank]]).astype(np.uint16).ravel())
        totals.append(whole[:, 0])
    each = np.concatenate(totals)
    everything = each.sum()
    return TailCurves(shape, knots, np.concatenate(values), each / everything if everything else each)


def _knots(shape: ModelShape, limit: int) -> dict[int, NDArray[np.int64]]:
    fulls = {slot.full_rank for _, slot in shape}
    most = max(fulls)
    while True:
        knots = {full: _ranks(full, most) for full in fulls}
        held = sum(slot.units * len(knots[slot.full_rank]) for _, slot in shape)
        if held <= limit or most <= _LEAST_KNOTS:
            return knots
        most //= 2


def _ranks(full: int, most: int) -> NDArray[np.int64]:
    if full <= most:
        return np.arange(full + 1)
    # Closer together at small ranks, where tails fall fast.
    return np.unique(np.rint(full * np.linspace(0, 1, most + 1) ** 2).astype(np.int64))


def _units(shape: ModelShape) -> Iterator[tuple[int, Slot, int]]:
    for layer, slot in shape:
        for unit in range(slot.units):
            yield layer, slot, unit
