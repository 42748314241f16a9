"""Rank plans: the rank of every (layer, projection, head), and every count that follows from it.

Ratio to rank, break-even, and parameter and byte counts live here and nowhere else. No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.plan_text import format_rules, parse_rules

Rank = int | None
"""Rank of one unit; None keeps it dense."""


def rank_for_keep(slot: Slot, keep: float) -> Rank:
    """The largest rank whose factors hold at most `keep` of a unit's parameters; None from keep 1 on.

    rank = floor(keep·mn/(m+n)), never below 1.

    >>> rank_for_keep(Slot("up", 3072, 768), 0.5)
    307
    """
    if not 0 < keep <= 1:
        raise PlanError(f"keep must be above 0 and at most 1, got {keep:g}")
    return None if keep == 1 else max(1, math.floor(keep * slot.break_even))


def bytes_of(parameters: int, dtype: str) -> int:
    """Bytes that parameters take as fp32, fp16 or bf16.

    >>> bytes_of(1000, "bf16")
    2000
    """
    return parameters * {"fp32": 4, "fp16": 2, "bf16": 2}[dtype]


def snap(slot: Slot, rank: Rank) -> Rank:
    """Dense (None) where a rank is at or above break-even: factors would cost more than they save."""
    return None if rank is None or rank >= slot.break_even else rank


@dataclass(frozen=True)
class RankPlan:
    """Ranks for one model shape: `ranks[layer][slot][unit]`. Immutable and hashable."""

    shape: ModelShape
    ranks: tuple[tuple[tuple[Rank, ...], ...], ...]

    def __post_init__(self) -> None:
        if len(self.ranks) != len(self.shape.layers):
            raise PlanError(f"plan has {len(self.ranks)} layers but the model has {len(self.shape.layers)}")
        for index, (slots, rows) in enumerate(zip(self.shape.layers, self.ranks, strict=True)):
            if len(rows) != len(slots):
                raise PlanError(
                    f"layer L{index + 1} has {len(slots)} projections but the plan gives {len(rows)}"
                )
            for slot, row in zip(slots, rows, strict=True):
                _check_row(index, slot, row)
        for index, slot in self.shape:
            if slot.sharing == 1:
                continue
            first = self.shape.group(index, slot.name)[0]
            if self.get(index, slot.name) != self.get(first, slot.name):
                raise PlanError(
                    f"L{first + 1}.{slot.name} and L{index + 1}.{slot.name} share a basis: give them equal ranks"
                )

    @classmethod
    def build(cls, shape: ModelShape, rank: Callable[[int, Slot, int], Rank]) -> RankPlan:
        """A plan from a function of (layer, slot, unit), with ranks at or above break-even kept dense."""
        return cls(
            shape,
            tuple(
                tuple(
                    tuple(snap(slot, rank(index, slot, unit)) for unit in range(slot.units)) for slot in slots
                )
                for index, slots in enumerate(shape.layers)
            ),
        )

    @classmethod
    def dense(cls, shape: ModelShape) -> RankPlan:
        """Nothing factored."""
        return cls.build(shape, lambda layer, slot, unit: None)

    @classmethod
    def full_rank(cls, shape: ModelShape) -> RankPlan:
        """Every unit factored at full rank, above break-even: equal to dense up to rounding, and larger."""
        return cls(
            shape, tuple(tuple((slot.full_rank,) * slot.units for slot in slots) for slots in shape.layers)
        )

    def get(self, layer: int, name: str) -> tuple[Rank, ...]:
        """Ranks of one slot, one per unit."""
        position = [slot.name for slot in self.shape.layers[layer]].index(self.shape.slot(layer, name).name)
        return self.ranks[layer][position]

    def replace(self, layer: int, name: str, ranks: tuple[Rank, ...]) -> RankPlan:
        """The same plan with one slot's ranks changed, snapped to dense at break-even; of all layers that share."""
        slot = self.shape.slot(layer, name)
        _check_row(layer, slot, ranks)
        group = self.shape.group(layer, name)
        rows = tuple(
            tuple(snap(s, r) for r in ranks) if index in group and s.name == name else row
            for index, s, row in self._rows()
        )
        return RankPlan(self.shape, _regroup(self.shape, rows))

    # Counts

    def _rows(self) -> list[tuple[int, Slot, tuple[Rank, ...]]]:
        return [
            (index, slot, row)
            for index, (slots, rows) in enumerate(zip(self.shape.layers, self.ranks, strict=True))
            for slot, row in zip(slots, rows, strict=True)
        ]

    @property
    def kept_parameters(self) -> int:
        """Weights of the factored linears under this plan (biases are not factored and not counted)."""
        return round(sum(_unit_parameters(slot, rank) for _, slot, row in self._rows() for rank in row))

    @property
    def keep(self) -> float:
        """Kept parameters / dense parameters, over the factored linears."""
        return self.kept_parameters / self.shape.dense_parameters

    @property
    def dense_units(self) -> int:
        """Units that stay dense."""
        return sum(rank is None for _, _, row in self._rows() for rank in row)

    @property
    def units(self) -> int:
        return sum(slot.units for _, slot in self.shape)

    # Forms

    def to_text(self) -> str:
        """Short text, such as `*.qkv: 32 L2.q.h3: 16 *.up: dense`; layers and heads count from 1."""
        return format_rules(self.shape, {(index, slot.name): row for index, slot, row in self._rows()})

    @classmethod
    def from_text(cls, shape: ModelShape, text: str, base: RankPlan | None = None) -> RankPlan:
        """Reads the short text over `base` (all dense by default); later rules win.

        Raises:
            PlanError: a rule that cannot be read, names what the model lacks, or asks for a rank that is not there.
        """
        values = parse_rules(shape, text)
        start = base or cls.dense(shape)
        return cls.build(
            shape,
            lambda layer, slot, unit: values.get((layer, slot.name, unit), start.get(layer, slot.name)[unit]),
        )

    def to_json(self) -> dict[str, Any]:
        """A plain object; layers and heads by position, dense as the word."""
        layers = [
            {
                slot.name: ["dense" if rank is None else rank for rank in row]
                for slot, row in zip(slots, rows, strict=True)
            }
            for slots, rows in zip(self.shape.layers, self.ranks, strict=True)
        ]
        return {"format": "flashsvd-plan/1", "shape": self.shape.to_json(), "layers": layers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | str) -> RankPlan:
        """Reads `to_json`.

        Raises:
            PlanError: not JSON, not a plan, or a plan that does not fit its own shape.
        """
        if isinstance(data, str):
            try:
                data = json.loads(data)
            except json.JSONDecodeError as error:
                raise PlanError(
                    f"the plan is not JSON (line {error.lineno}: {error.msg}); export it again"
                ) from None
        if not isinstance(data, Mapping) or data.get("format") != "flashsvd-plan/1":
            raise PlanError("this is not a rank plan: expected an object with format 'flashsvd-plan/1'")
        shape = ModelShape.from_json(data.get("shape", {}))
        layers = data.get("layers")
        if not isinstance(layers, list) or len(layers) != len(shape.layers):
            raise PlanError(f"the plan must give ranks for {len(shape.layers)} layers")
        rows = []
        for index, slot in shape:
            row = layers[index].get(slot.name) if isinstance(layers[index], Mapping) else None
            if not isinstance(row, list):
                raise PlanError(f"the plan gives no ranks for L{index + 1}.{slot.name}")
            rows.append(tuple(None if rank == "dense" else rank for rank in row))
        return cls(shape, _regroup(shape, tuple(rows)))

    @property
    def digest(self) -> str:
        """Content hash, equal for equal plans."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def check_fits(self, shape: ModelShape) -> None:
        """Raises PlanError unless the plan was made for a model of this shape.

        How it is factored is the plan's own choice: per head, in groups of heads or as whole matrices, layers
        sharing a basis or not.
        """
        mine, theirs = self.shape, shape
        if (mine.family, len(mine.layers)) == (theirs.family, len(theirs.layers)) and all(
            len(ours) == len(others) and all(map(_same_linear, ours, others))
            for ours, others in zip(mine.layers, theirs.layers, strict=True)
        ):
            return
        raise PlanError(
            f"this plan is for another model: it has {_summary(mine)}, the model has {_summary(theirs)}"
        )

    def summary(self) -> str:
        """One line: keep, dense units, and the range of ranks per projection."""
        parts = []
        for name in self.shape.slot_names:
            seen = Counter(rank for _, slot, row in self._rows() if slot.name == name for rank in row)
            numbers = sorted(rank for rank in seen if rank is not None)
            text = (
                "dense"
                if not numbers
                else f"{numbers[0]}"
                if len(numbers) == 1
                else f"{numbers[0]}-{numbers[-1]}"
            )
            parts.append(f"{name} {text}" + (f" ({seen[None]} dense)" if numbers and seen[None] else ""))
        return f"keep {self.keep:.3f}: " + ", ".join(parts)


def _unit_parameters(slot: Slot, rank: Rank) -> float:
    return slot.unit_parameters if rank is None else slot.factor_parameters(rank)


def _check_row(layer: int, slot: Slot, row: tuple[Rank, ...]) -> None:
    place = f"L{layer + 1}.{slot.name}"
    if len(row) != slot.units:
        raise PlanError(f"{place} takes {slot.units} rank(s), got {len(row)}")
    for unit, rank in enumerate(row):
        if rank is None:
            continue
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise PlanError(f"{place}: a rank is a whole number or 'dense', got {rank!r}")
        if not 1 <= rank <= slot.full_rank:
            head = f".h{unit + 1}" if slot.units > 1 else ""
            raise PlanError(f"{place}{head}: rank must be from 1 to {slot.full_rank} (full rank), got {rank}")


def _same_linear(planned: Slot, slot: Slot) -> bool:
    same = (planned.name, planned.out_features, planned.in_features) == (
        slot.name,
        slot.out_features,
        slot.in_features,
    )
    whole = planned.heads == slot.heads == 0
    return same and (whole or (planned.heads > 0 and slot.heads % planned.heads == 0))


def _regroup(
    shape: ModelShape, rows: tuple[tuple[Rank, ...], ...]
) -> tuple[tuple[tuple[Rank, ...], ...], ...]:
    queue = iter(rows)
    return tuple(tuple(next(queue) for _ in slots) for slots in shape.layers)


def _summary(shape: ModelShape) -> str:
    return f"{len(shape.layers)} {shape.family} layers of {shape.heads} heads, hidden {shape.hidden}"
