"""What one program holds at one step, as tiles of the matrices that it works on."""

from __future__ import annotations

import math
from collections.abc import Collection

import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.onchip.programs import Held, Moment, Part

_MOST = {"left": (18, 3), "top": (3, 26), "middle": (18, 26), "bottom": (3, 26), "right": (18, 3)}
"""Cells down and across that a part is drawn with at most; a cell stands for several tiles where there are more."""
_X = {
    "left": (0.0, 0.15),
    "top": (0.21, 0.79),
    "middle": (0.21, 0.79),
    "bottom": (0.21, 0.79),
    "right": (0.85, 1.0),
}
_ROLES = ("idle", "kept", "read", "made", "written")


def program_tiles(now: Moment, *, mode: str = "light", height: int = 300) -> go.Figure:
    """Parts side by side as their products need them: rows of the left and the middle are the same tokens, columns of
    the top and the middle the same columns. Tiles on chip are coloured by `role_colours`."""
    colours = theme.palette(mode)
    figure = go.Figure()
    places = {part.place for part in now.parts}
    notes = []
    for number, part in enumerate(now.parts, start=1):
        suffix = "" if number == 1 else str(number)
        x, y = _domain(part.place, places)
        cells = _cells(part, now.held)
        figure.add_trace(
            go.Heatmap(
                z=[[_ROLES.index(role) for role, _ in row] for row in cells],
                customdata=[[words for _, words in row] for row in cells],
                hovertemplate="%{customdata}<extra></extra>",
                zmin=0,
                zmax=len(_ROLES) - 1,
                colorscale=_scale(mode, part.on_chip),
                showscale=False,
                xgap=1.5,
                ygap=1.5,
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
            )
        )
        hidden = {"showticklabels": False, "visible": False}
        figure.update_layout(
            {
                f"xaxis{suffix}": theme.axis(mode, grid=False, domain=x, anchor=f"y{suffix}", **hidden),
                f"yaxis{suffix}": theme.axis(
                    mode, grid=False, domain=y, anchor=f"x{suffix}", autorange="reversed", **hidden
                ),
            }
        )
        notes.append(
            theme.label(
                mode,
                _title(part, colours.text),
                x=x[1] if part.place == "right" else x[0],
                y=y[1],
                xref="paper",
                yref="paper",
                xanchor="right" if part.place == "right" else "left",
                yanchor="bottom",
                align="right" if part.place == "right" else "left",
            )
        )
    figure.update_layout(**theme.layout(mode, height), annotations=notes)
    figure.update_layout(margin={"l": 2, "r": 2, "t": 18, "b": 2})
    return figure


def role_colours(mode: str) -> tuple[tuple[str, str], ...]:
    """The key: (colour, words)."""
    colours = theme.palette(mode)
    return (
        (colours.flash, "kept"),
        (colours.mark, "read"),
        (colours.scale[2], "made"),
    )


def _domain(place: str, places: Collection[str]) -> tuple[list[float], list[float]]:
    low = 0.24 if "bottom" in places else 0.0
    high = 0.78 if "top" in places else 1.0
    y = {"top": [0.88, 1.0], "bottom": [0.0, 0.12]}.get(place, [low, high])
    x = list(_X[place])
    if "left" not in places and place in ("top", "middle", "bottom"):
        x[0] = 0.0
    if "right" not in places and place in ("top", "middle", "bottom"):
        x[1] = 1.0
    return x, y


def _scale(mode: str, on_chip: bool) -> list[list[object]]:
    colours = theme.palette(mode)
    idle = theme.faded(colours.weights, 0.4) if on_chip else colours.weights
    found = {"idle": idle, "kept": colours.flash, "read": colours.mark, "made": colours.scale[2]}
    found["written"] = colours.flash
    steps = len(_ROLES)
    return [[end, found[role]] for i, role in enumerate(_ROLES) for end in ((i / steps), ((i + 1) / steps))]


def _title(part: Part, colour: str) -> str:
    rows, columns = part.shape
    chip = ", on chip only" if part.on_chip else ""
    # Beside the top part there is room for two lines.
    between = "<br>" if part.place in ("left", "right") else " "
    return f'<span style="color:{colour}"><b>{part.name}</b></span>{between}{rows:,} × {columns:,}{chip}'


def _cells(part: Part, held: tuple[Held, ...]) -> list[list[tuple[str, str]]]:
    """(role, words) of every cell."""
    down, across = part.tiles
    most_down, most_across = _MOST[part.place]
    rows, columns = min(down, most_down), min(across, most_across)
    roles = {
        (i, j): one.role
        for one in held
        if one.part == part.name
        for i in _cells_of(one.rows, rows, down)
        for j in _cells_of(one.columns, columns, across)
    }
    return [
        [_cell(part, roles.get((i, j), "idle"), i, rows, j, columns) for j in range(columns)]
        for i in range(rows)
    ]


def _cells_of(tiles: tuple[int, int], cells: int, count: int) -> range:
    """Cells that tiles, first to last of `count`, are drawn in."""
    first, last = (tile * cells // count for tile in tiles)
    return range(first, last + 1)


def _cell(part: Part, role: str, i: int, rows: int, j: int, columns: int) -> tuple[str, str]:
    down, across = part.tiles
    count = math.ceil(down / rows) * math.ceil(across / columns)
    which = f"row {i + 1}, column {j + 1}" if count == 1 else f"a cell is up to {count} tiles"
    state = {"idle": "not on chip", "read": "read in this step"}.get(role, role)
    size = f"{part.tile[0]:,} × {part.tile[1]:,}"
    return role, f"<b>{part.name}</b>, tile of {size}<br>{which}<br>{state}"
