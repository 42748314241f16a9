"""Edits of a plan, as a grid that a person paints on sends them: checked, never trusted, applied all at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import Rank, RankPlan

TILE = 16
"""The kernels' step of ranks: what a rank is padded to."""

MOST_EDITS = 100_000


@dataclass(frozen=True)
class Edit:
    """Units `first` to `last` of one slot get one rank, None for dense. Layers and units count from 0."""

    layer: int
    slot: str
    first: int
    last: int
    rank: Rank


def read_edits(shape: ModelShape, data: object) -> tuple[Edit, ...]:
    """Edits from a list of `[layer, slot, first unit, last unit, rank or None]`.

    >>> from flashsvd.models.shape import Slot
    >>> shape = ModelShape("bert", 64, 2, 2, 32, 64, ((Slot("q", 64, 64, heads=2),),))
    >>> read_edits(shape, [[0, "q", 0, 1, 16]])
    (Edit(layer=0, slot='q', first=0, last=1, rank=16),)

    Raises:
        PlanError: anything that is not such a list, or names a layer, projection, head or rank that is not there.
    """
    if not isinstance(data, list):
        raise PlanError(f"edits must be a list, got {type(data).__name__}")
    if len(data) > MOST_EDITS:
        raise PlanError(f"{len(data)} edits at once; at most {MOST_EDITS} are read")
    return tuple(_edit(shape, item) for item in data)


def _edit(shape: ModelShape, item: object) -> Edit:
    if not isinstance(item, list) or len(item) != 5 or not isinstance(item[1], str):
        raise PlanError(f"an edit is [layer, projection, first, last, rank], got {str(item)[:60]!r}")
    layer, name, first, last = _whole(item[0]), item[1], _whole(item[2]), _whole(item[3])
    slot = shape.slot(layer, name[:20])
    if not 0 <= first <= last < slot.units:
        raise PlanError(
            f"L{layer + 1}.{slot.name} has units 1 to {slot.units}, the edit names {first + 1} to {last + 1}"
        )
    if item[4] is None:
        return Edit(layer, slot.name, first, last, None)
    rank = _whole(item[4])
    if not 1 <= rank <= slot.full_rank:
        raise PlanError(
            f"L{layer + 1}.{slot.name}: rank must be from 1 to {slot.full_rank} (full rank), got {rank}"
        )
    return Edit(layer, slot.name, first, last, rank)


def _whole(value: object) -> int:
    # JSON has one kind of number: 32.0 is a whole one too, true is none.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"an edit takes whole numbers, got {str(value)[:20]!r}")
    return value


def apply_edits(plan: RankPlan, edits: Iterable[Edit]) -> RankPlan:
    """The plan with all edits made, a later one over an earlier; of all layers that share a factor.

    Ranks at or above break-even keep the unit dense.
    """
    shape = plan.shape
    rows: dict[tuple[int, str], list[Rank]] = {}
    for edit in edits:
        for layer in shape.group(edit.layer, edit.slot):
            row = rows.setdefault((layer, edit.slot), list(plan.get(layer, edit.slot)))
            row[edit.first : edit.last + 1] = [edit.rank] * (edit.last + 1 - edit.first)

    def rank(layer: int, slot: Slot, unit: int) -> Rank:
        return rows[layer, slot.name][unit]

    for layer, slot in shape:
        rows.setdefault((layer, slot.name), list(plan.get(layer, slot.name)))
    return RankPlan.build(shape, rank)


def edits_between(before: RankPlan, after: RankPlan) -> tuple[Edit, ...]:
    """The runs of units that differ: `apply_edits(before, edits_between(before, after))` is `after`."""
    if before.shape != after.shape:
        raise PlanError(
            "the two plans are for different shapes: edits lead from one plan to another of its shape"
        )
    edits: list[Edit] = []
    for layer, slot in after.shape:
        old, new = before.get(layer, slot.name), after.get(layer, slot.name)
        for unit in range(slot.units):
            if old[unit] == new[unit]:
                continue
            last = edits[-1] if edits else None
            if last and (last.layer, last.slot, last.last, last.rank) == (
                layer,
                slot.name,
                unit - 1,
                new[unit],
            ):
                edits[-1] = Edit(layer, slot.name, last.first, unit, new[unit])
            else:
                edits.append(Edit(layer, slot.name, unit, unit, new[unit]))
    return tuple(edits)


def tile_of(slot: Slot) -> int:
    """The step of a slot's ranks: 16, or a smaller power of two where break-even leaves no two steps of 16.

    >>> tile_of(Slot("q", 768, 768, heads=12)), tile_of(Slot("q", 64, 64, heads=4))
    (16, 4)
    """
    tile = TILE
    while tile > 1 and 2 * tile >= slot.break_even:
        tile //= 2
    return tile


def step_rank(slot: Slot, rank: Rank, steps: int) -> Rank:
    """The rank some tiles up or down: the next multiple, from there whole tiles; dense above break-even, 1 below all.

    >>> slot = Slot("q", 768, 768, heads=12)
    >>> [step_rank(slot, 40, steps) for steps in (-3, -1, 0, 1, 2)]
    [1, 32, 40, 48, None]
    """
    tile = tile_of(slot)
    for _ in range(abs(steps)):
        if steps > 0:
            above = None if rank is None else (rank // tile + 1) * tile
            rank = None if above is None or above >= slot.break_even else above
        else:
            below = -(-slot.break_even // tile) - 1 if rank is None else -(-rank // tile) - 1
            rank = max(1, int(below) * tile)
    return rank


def padded(rank: int) -> int:
    """What the kernels pad a rank to.

    >>> padded(25), padded(32)
    (32, 32)
    """
    return -(-rank // TILE) * TILE
