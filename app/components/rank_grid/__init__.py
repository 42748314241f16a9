"""The rank grid: layers by heads, one strip per projection, painted in the browser, one message per gesture.

The component is mounted twice: once with what does not change while one edits (sizes and energy curves, handed over
once: Streamlit sends what is equal only as its hash) and once with the plan.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import streamlit as st

from app.echo import GRID
from flashsvd.errors import PlanError
from flashsvd.figures import theme
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.plan_edits import Edit, read_edits, tile_of
from flashsvd.ranks import RankPlan, bytes_of
from flashsvd.tail_curves import TailCurves

At = tuple[int, str, int]
"""A cell: layer, slot, unit, from 0."""

_FOLDER = Path(__file__).parent
_AROUND = 54
"""Pixels of the tools above the canvas and the key below it, on one line each."""
_SCRIPTS = ("counts.js", "drawing.js", "grid.js")
_MOST_GESTURES = 200


@dataclass(frozen=True)
class Gesture:
    """One thing a person did. number: counts up in a tab. kind: "edit", "undo", "redo" or "look" (at a cell)."""

    number: int
    kind: str
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class Message:
    """All gestures that the page has not acknowledged, oldest first, and the cell they ended at."""

    gestures: tuple[Gesture, ...]
    at: At | None


def script() -> str:
    """The component's JavaScript: plain files, one after another, none of which imports another."""
    return "\n".join((_FOLDER / name).read_text("utf-8") for name in _SCRIPTS)


@functools.cache
def _components() -> tuple[Any, Any]:
    js = script()
    return (
        st.components.v2.component("rank_grid_model", js=js),
        st.components.v2.component(
            "rank_grid",
            html=(_FOLDER / "grid.html").read_text("utf-8"),
            css=(_FOLDER / "grid.css").read_text("utf-8"),
            js=js,
        ),
    )


def canvas_height(layers: int) -> int:
    """Pixels of the grid's canvas, as `gridHeight` in drawing.js counts them.

    >>> canvas_height(6), canvas_height(80)
    (162, 510)
    """
    row = 22 if layers <= 12 else 17 if layers <= 20 else 11 if layers <= 32 else 8 if layers <= 48 else 6
    return 19 + 9 + layers * row + 2


def rank_grid(
    plan: RankPlan,
    model: Mapping[str, Any],
    *,
    mode: str,
    at: At,
    seen: int,
    can: tuple[bool, bool],
    on_gesture: Callable[[], None],
) -> None:
    """Draws the grid. model: of `model_data`; at: the cell whose spectrum is shown; seen: the last gesture taken in;
    can: whether there is something to undo, to redo. on_gesture reads `message`."""
    hand_over, grid = _components()
    # The browser's part comes late: what stands below must not move then.
    least = canvas_height(len(plan.shape.layers)) + _AROUND
    st.html(f"<style>.st-key-{GRID} {{ min-height: {least}px }}</style>")
    with st.container(key="rank_grid_data"):
        hand_over(key=f"{GRID}_model", data={"model": dict(model)}, height="content")
    grid(
        key=GRID,
        data={
            "model": model["id"],
            "plan": {
                "layers": len(plan.shape.layers),
                "ranks": runs_of(plan),
                "text": plan.to_text(),
                "at": [at[0], plan.shape.slot_names.index(at[1]), at[2]],
                "seen": seen,
                "undo": can[0],
                "redo": can[1],
                "colours": colours(mode),
            },
        },
        on_gesture_change=on_gesture,
    )


def colours(mode: str) -> dict[str, Any]:
    """What the canvas draws with."""
    palette = theme.palette(mode)
    return {
        "scale": list(palette.scale),
        "surface": palette.surface,
        "text": palette.text,
        "muted": palette.muted,
        "mark": palette.mark,
    }


def model_data(
    shape: ModelShape, curves: TailCurves | None, *, parameters: int | None, dtype: str
) -> dict[str, Any]:
    """What the browser counts with, and an id that changes with any of it.

    parameters: of the whole model, if known.
    """
    names = shape.slot_names
    kinds: dict[Slot, int] = {}
    rows = []
    for slots in shape.layers:
        by_name = {slot.name: slot for slot in slots}
        rows.append(
            [kinds.setdefault(by_name[name], len(kinds)) if name in by_name else -1 for name in names]
        )
    if any(
        [slot.name for slot in slots] != [n for n in names if n in {s.name for s in slots}]
        for slots in shape.layers
    ):
        raise PlanError("the layers of this model list their projections in different orders")
    groups = {
        (names.index(slot.name), *_ends(shape.group(layer, slot.name)))
        for layer, slot in shape
        if slot.sharing > 1
    }
    data = {
        "strips": [
            {"name": name, "units": max(s.units for _, s in shape if s.name == name)} for name in names
        ],
        "kinds": [
            {
                "units": slot.units,
                "full": slot.full_rank,
                "even": slot.break_even,
                "dense": slot.unit_parameters,
                "each": slot.factor_parameters(1),
                "tile": tile_of(slot),
            }
            for slot in kinds
        ],
        "kind": rows,
        "groups": sorted(groups),
        "queryHeads": shape.heads,
        "rest": None if parameters is None else parameters - shape.dense_parameters,
        "bytesEach": bytes_of(1, dtype),
        "dtype": dtype,
        "tails": curves.to_json() if curves else None,
    }
    text = json.dumps(data, sort_keys=True)
    return {"id": hashlib.sha256(text.encode()).hexdigest()[:16], **data}


def _ends(group: range) -> tuple[int, int]:
    return group.start, group.stop


def runs_of(plan: RankPlan) -> list[int]:
    """All ranks in the shape's order as runs of (rank, how many), 0 for dense."""
    ranks = (rank or 0 for layer, slot in plan.shape for rank in plan.get(layer, slot.name))
    return [number for rank, run in groupby(ranks) for number in (rank, sum(1 for _ in run))]


def last_number(value: Mapping[str, Any]) -> int:
    """The highest number of a gesture in what the browser sent, 0 for none: taken in, even if it was nonsense."""
    found = value.get("gestures")
    numbers = (
        [item.get("n") for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []
    )
    return max((n for n in numbers if isinstance(n, int) and not isinstance(n, bool)), default=0)


def message(value: object, shape: ModelShape, seen: int) -> Message:
    """What the browser sent, without what was taken in before.

    Raises:
        PlanError: it is not such a message, or an edit names what the model lacks.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("gestures"), list):
        raise PlanError("the grid sent something that is no gesture: reload the page")
    found = value["gestures"]
    if len(found) > _MOST_GESTURES:
        raise PlanError(f"the grid sent {len(found)} gestures at once; at most {_MOST_GESTURES} are read")
    gestures = tuple(_gesture(shape, item) for item in found if _number(item) > seen)
    return Message(gestures, _cell(shape, value.get("at")) if gestures else None)


def _number(item: object) -> int:
    number = item.get("n") if isinstance(item, Mapping) else None
    if isinstance(number, bool) or not isinstance(number, int):
        raise PlanError(f"a gesture has a number, got {str(item)[:60]!r}")
    return number


def _gesture(shape: ModelShape, item: Mapping[str, Any]) -> Gesture:
    kind = item.get("do")
    if kind not in ("edit", "undo", "redo", "look"):
        raise PlanError(f"a gesture is an edit, undo, redo or look, got {str(kind)[:20]!r}")
    return Gesture(item["n"], kind, read_edits(shape, item.get("edits")) if kind == "edit" else ())


def _cell(shape: ModelShape, value: object) -> At | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3:
        raise PlanError(f"a cell is [layer, projection, head], got {str(value)[:60]!r}")
    edit = read_edits(shape, [[value[0], value[1], value[2], value[2], None]])[0]
    return edit.layer, edit.slot, edit.first
