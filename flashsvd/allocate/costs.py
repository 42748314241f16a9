"""What a rank costs, in whatever the budget counts: parameters, bytes, FLOPs or measured milliseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import Rank, RankPlan, bytes_of

Kind = Literal["parameters", "bytes", "flops", "latency_ms"]

STEP = 16
_LEAST_CHOICES = 8


@dataclass(frozen=True)
class Budget:
    """At most `value` of one kind, of which `fixed` goes to what is not factored: embeddings, norms, heads, biases.

    A budget over the factored linears alone has fixed 0.
    """

    kind: Kind
    value: float
    fixed: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            raise PlanError(f"a budget must be above 0, got {self.value:g} {self.kind}")
        if not (math.isfinite(self.fixed) and self.fixed >= 0):
            raise PlanError(f"the fixed part of a budget must not be negative, got {self.fixed:g}")

    @property
    def left(self) -> float:
        """What the factored linears may cost; below 0 where the fixed part alone is too much."""
        return self.value - self.fixed

    @classmethod
    def of_keep(cls, shape: ModelShape, keep: float) -> Budget:
        """`keep` of the factored linears' parameters. Raises PlanError for a keep outside (0, 1]."""
        if not 0 < keep <= 1:
            raise PlanError(f"keep must be above 0 and at most 1, got {keep:g}")
        return cls("parameters", math.floor(keep * shape.dense_parameters))


@dataclass(frozen=True)
class Costs:
    """What one unit of a slot costs at a rank, `of_unit(layer, slot, rank)`, dense for None."""

    kind: Kind
    of_unit: Callable[[int, Slot, Rank], float]

    def of_plan(self, plan: RankPlan) -> float:
        """What a whole plan costs."""
        return math.fsum(
            self.of_unit(layer, slot, rank)
            for layer, slot in plan.shape
            for rank in plan.get(layer, slot.name)
        )

    @classmethod
    def parameters(cls) -> Costs:
        """Weights of the factored linears, as `RankPlan.kept_parameters` counts them."""
        return cls("parameters", lambda layer, slot, rank: _parameters(slot, rank))

    @classmethod
    def bytes(cls, dtype: str) -> Costs:
        """The same weights in fp32, fp16 or bf16."""
        each = bytes_of(1, dtype)
        return cls("bytes", lambda layer, slot, rank: each * _parameters(slot, rank))

    @classmethod
    def flops(cls) -> Costs:
        """FLOPs of the factored linears per token: a multiplication and an addition for each weight."""
        return cls("flops", lambda layer, slot, rank: 2 * _parameters(slot, rank))

    @classmethod
    def latency(cls, table: Mapping[Slot, SlotLatency]) -> Costs:
        """Milliseconds from a measured table; a unit takes its share of its slot's time.

        Raises PlanError, when asked, for a slot that the table lacks.
        """

        def of_unit(layer: int, slot: Slot, rank: Rank) -> float:
            if slot not in table:
                raise PlanError(f"the latency table has no times for L{layer + 1}.{slot.name}: measure it")
            return table[slot].at(rank) / slot.units

        return cls("latency_ms", of_unit)


@dataclass(frozen=True)
class SlotLatency:
    """Milliseconds of one slot with all its units at a rank, at a few ranks in rising order, and dense."""

    ranks: tuple[int, ...]
    ms: tuple[float, ...]
    dense_ms: float

    def at(self, rank: Rank) -> float:
        """Milliseconds at a rank: straight lines between the measured ones, level outside.

        >>> SlotLatency((16, 32), (1.0, 2.0), 3.0).at(24)
        1.5
        """
        return self.dense_ms if rank is None else float(np.interp(rank, self.ranks, self.ms))


def step_of(slot: Slot, step: int | None = None) -> int:
    """The step between the ranks of a slot that an allocator tries: `step`, or the usual one.

    That is 16, what tensor cores take at once; or the largest power of two below that leaves 8 ranks under
    break-even, since a head of 64 outputs has no more than three multiples of 16.

    >>> step_of(Slot("up", 3072, 768)), step_of(Slot("q", 768, 768, heads=12))
    (16, 4)

    Raises:
        PlanError: a step below 1.
    """
    if step is not None:
        if step < 1:
            raise PlanError(f"the step between ranks must be at least 1, got {step}")
        return step
    usual = STEP
    while usual > 1 and usual * _LEAST_CHOICES >= slot.break_even:
        usual //= 2
    return usual


def choices(slot: Slot, step: int | None = None) -> tuple[Rank, ...]:
    """The ranks an allocator may give a unit: multiples of the step below break-even, and dense.

    >>> choices(Slot("o", 64, 64), step=8)
    (8, 16, 24, None)
    """
    between = step_of(slot, step)
    below = math.ceil(slot.break_even) - 1
    ranks = tuple(range(between, below + 1, between))
    return (*(ranks or ((below,) if below >= 1 else ())), None)


def _parameters(slot: Slot, rank: Rank) -> float:
    return slot.unit_parameters if rank is None else slot.factor_parameters(rank)
