"""What a model is made of, as far as factorisation cares: its linears, layer by layer. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flashsvd.errors import PlanError


@dataclass(frozen=True)
class Slot:
    """One linear of a block, y = x·Wᵀ + b with W [out_features, in_features].

    A slot with heads (q, k, v) is factored head by head when `per_head`: `units` matrices of
    [out_features / heads, in_features]. Any other slot is one unit. `sharing` neighbouring layers have one right
    factor between them (1: each its own), whose cost is counted in equal parts.

    >>> q = Slot("q", 768, 768, heads=12)
    >>> q.units, q.unit_out, q.full_rank, round(q.break_even, 2)
    (12, 64, 64, 59.08)
    """

    name: str
    out_features: int
    in_features: int
    heads: int = 0
    per_head: bool = True
    sharing: int = 1

    @property
    def units(self) -> int:
        """How many matrices are factored on their own."""
        return self.heads if self.heads and self.per_head else 1

    @property
    def unit_out(self) -> int:
        return self.out_features // self.units

    @property
    def full_rank(self) -> int:
        """The rank at which factors hold any unit exactly: all layers that share, stacked, are one matrix."""
        return min(self.unit_out * self.sharing, self.in_features)

    @property
    def break_even(self) -> float:
        """The rank mn/(m+n) at which two factors cost what the dense unit costs; mn/(m+n/g) where g layers share."""
        return self.unit_out * self.in_features / (self.unit_out + self.in_features / self.sharing)

    @property
    def unit_parameters(self) -> int:
        return self.unit_out * self.in_features

    def factor_parameters(self, rank: int) -> float:
        """Parameters of one unit's two factors at this rank, the right one shared in equal parts: whole numbers only
        in the sum over a group."""
        return rank * (self.unit_out + self.in_features / self.sharing)


@dataclass(frozen=True)
class ModelShape:
    """The linears of every layer, and the few sizes that engines and pictures need."""

    family: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    layers: tuple[tuple[Slot, ...], ...]

    def __iter__(self) -> Iterator[tuple[int, Slot]]:
        """Every (layer index, slot), in order."""
        for index, slots in enumerate(self.layers):
            for slot in slots:
                yield index, slot

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Slot names in the order of the first layer that has each."""
        names: dict[str, None] = {}
        for _, slot in self:
            names.setdefault(slot.name)
        return tuple(names)

    @property
    def dense_parameters(self) -> int:
        """Weights of all linears that can be factored, before factoring."""
        return sum(slot.out_features * slot.in_features for _, slot in self)

    def slot(self, layer: int, name: str) -> Slot:
        """The slot of this name in a layer (counted from 0).

        Raises:
            PlanError: there is no such layer or slot.
        """
        if not 0 <= layer < len(self.layers):
            raise PlanError(
                f"layer L{layer + 1} does not exist: this model has layers L1 to L{len(self.layers)}"
            )
        for slot in self.layers[layer]:
            if slot.name == name:
                return slot
        names = ", ".join(slot.name for slot in self.layers[layer])
        raise PlanError(f"layer L{layer + 1} has no projection {name!r}: expected one of {names}")

    @property
    def per_head(self) -> bool:
        """Whether slots with heads are factored head by head."""
        return any(slot.heads and slot.per_head for _, slot in self)

    def with_per_head(self, per_head: bool) -> ModelShape:
        """The same model with q, k, v factored per head, or each as one whole matrix."""
        layers = tuple(
            tuple(dataclasses.replace(slot, per_head=per_head) for slot in slots) for slots in self.layers
        )
        return dataclasses.replace(self, layers=layers)

    def with_sharing(self, group: int, names: Iterable[str]) -> ModelShape:
        """The same model with groups of `group` neighbouring layers that share the right factors of `names`.

        They are factored as whole matrices. The last group is what is left of the layers. Raises PlanError where
        layers of a group differ in size.
        """
        names, count = frozenset(names), len(self.layers)
        layers = []
        for index, slots in enumerate(self.layers):
            size = min(group, count - index // group * group)
            layers.append(
                tuple(
                    dataclasses.replace(s, sharing=size, per_head=False) if s.name in names else s
                    for s in slots
                )
            )
        shape = dataclasses.replace(self, layers=tuple(layers))
        for index, slot in shape:
            if slot != shape.slot(shape.group(index, slot.name)[0], slot.name):
                raise PlanError(
                    f"L{index + 1}.{slot.name} differs in size from the layers it is to share with"
                )
        return shape

    def group(self, layer: int, name: str) -> range:
        """The layers that share a slot's right factor with this one, itself included."""
        if self.slot(layer, name).sharing == 1:
            return range(layer, layer + 1)
        start = 0
        while True:
            stop = start + self.slot(start, name).sharing
            if layer < stop:
                return range(start, stop)
            start = stop

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelShape:
        """Reads `to_json`; the data may come from anyone.

        Raises:
            PlanError: fields are missing, of the wrong kind, or of a size no model has.
        """
        try:
            if len(data["layers"]) > _MOST_LAYERS:
                raise ValueError(f"{len(data['layers'])} layers")
            layers = tuple(tuple(_slot(slot) for slot in slots) for slots in data["layers"])
            sizes = {
                name: _size(data[name])
                for name in ("hidden", "heads", "kv_heads", "head_dim", "max_positions")
            }
            shape = cls(family=str(data["family"]), layers=layers, **sizes)
            _check_groups(shape)
            return shape
        except (AttributeError, KeyError, TypeError, ValueError, PlanError) as error:
            raise PlanError(
                f"the model shape in this file is malformed ({error!r}); export it again"
            ) from None


_MOST_LAYERS, _LARGEST_SIZE = 1000, 2**24


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST_SIZE:
        raise ValueError(f"expected a size from 1 to {_LARGEST_SIZE}, got {str(value)[:40]!r}")
    return value


def _slot(data: Mapping[str, Any]) -> Slot:
    heads = 0 if data["heads"] == 0 else _size(data["heads"])
    out_features = _size(data["out_features"])
    if heads > 4096 or (heads and out_features % heads):
        raise ValueError(f"{heads} heads in {out_features} outputs")
    return Slot(
        name=str(data["name"]),
        out_features=out_features,
        in_features=_size(data["in_features"]),
        heads=heads,
        per_head=bool(data["per_head"]),
        sharing=_size(data.get("sharing", 1)),
    )


def _check_groups(shape: ModelShape) -> None:
    for index, slot in shape:
        if slot.sharing > 1:
            group = shape.group(index, slot.name)
            if group.stop > len(shape.layers) or any(shape.slot(i, slot.name) != slot for i in group):
                raise ValueError(f"L{index + 1}.{slot.name} shares with layers unlike it")
