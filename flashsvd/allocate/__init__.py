"""A budget or a rule -> RankPlan. No torch: what runs models to choose ranks is in `flashsvd.search`."""

from __future__ import annotations

from flashsvd.allocate.costs import Budget, Costs, SlotLatency, choices, step_of
from flashsvd.allocate.greedy import allocate, total_loss
from flashsvd.allocate.published import LADDER, Rung, by_role, ladder, uniform
from flashsvd.allocate.spectral import (
    Losses,
    SingularValues,
    energy,
    losses_from,
    relative_tails,
    tail_energy,
)

__all__ = [
    "LADDER",
    "Budget",
    "Costs",
    "Losses",
    "Rung",
    "SingularValues",
    "SlotLatency",
    "allocate",
    "by_role",
    "choices",
    "energy",
    "ladder",
    "losses_from",
    "relative_tails",
    "step_of",
    "tail_energy",
    "total_loss",
    "uniform",
]
