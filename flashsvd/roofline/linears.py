"""The linears of a layer under a plan, and the products that they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashsvd.models.shape import Slot
from flashsvd.ranks import RankPlan
from flashsvd.roofline.op import ATTENTION, DOWN, OUTPUT, QKV, UP, Op

WIDE = ("up", "gate")


@dataclass(frozen=True)
class Linear:
    """One slot under a plan. first, second: weights of its two products, all in first where it stays dense; width:
    columns of the rank-space activation between them, 0 where dense; ranks: stored per head, head dim where dense."""

    slot: Slot
    first: int
    second: int
    width: int
    ranks: tuple[int, ...]

    @property
    def weights(self) -> int:
        return self.first + self.second

    @property
    def out(self) -> int:
        return self.slot.out_features

    @property
    def left(self) -> int:
        """Columns that the first product writes."""
        return self.width or self.out


def linears_of(plan: RankPlan, layer: int) -> dict[str, Linear]:
    found = {}
    for slot in plan.shape.layers[layer]:
        ranks = plan.get(layer, slot.name)
        if all(rank is None for rank in ranks):
            heads = slot.heads or 1
            dense = slot.out_features * slot.in_features
            found[slot.name] = Linear(slot, dense, 0, 0, (slot.out_features // heads,) * heads)
            continue
        # A dense head among low-rank ones is stored as itself times an identity.
        stored = tuple(slot.unit_out if rank is None else rank for rank in ranks)
        shared = slot.heads > 0 and slot.units == 1
        if shared:
            stored *= slot.heads
        width = stored[0] if shared else sum(stored)
        second = sum(stored) * slot.out_features // len(stored)
        found[slot.name] = Linear(slot, width * slot.in_features, second, width, stored)
    return found


def groups(linears: dict[str, Linear]) -> list[tuple[str, list[Linear]]]:
    """The operations of a layer in order; attention has no linear."""
    groups = (
        (QKV, tuple("qkv")),
        (ATTENTION, ()),
        (OUTPUT, ("o",)),
        (UP, WIDE),
        (DOWN, ("down",)),
    )
    found = [(name, [linears[slot] for slot in slots if slot in linears]) for name, slots in groups]
    return [(name, members) for name, members in found if members or (name == ATTENTION and "q" in linears)]


def products(
    layer: int,
    name: str,
    linears: Sequence[Linear],
    tokens: int,
    itemsize: int,
    columns_in: int,
    covers: tuple[str, ...] | None = None,
) -> list[Op]:
    """The first products of linears that read one input of `columns_in` columns, and their second ones."""
    covers = covers or (name,)
    factored = [one for one in linears if one.width]
    ops = [
        Op(
            layer,
            name,
            2 * tokens * sum(one.first for one in linears),
            itemsize * sum(one.first for one in linears),
            itemsize * tokens * (columns_in + sum(one.left for one in linears)),
            covers,
        )
    ]
    if factored:
        ops.append(
            Op(
                layer,
                name,
                2 * tokens * sum(one.second for one in factored),
                itemsize * sum(one.second for one in factored),
                itemsize * tokens * sum(one.width + one.out for one in factored),
                covers,
            )
        )
    return ops
