"""Where dense operations go under the roof: arcs from each to what stands for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.roofline import Ceiling, Total

_NEAR = 0.05
_STEPS = 24
_TERA = 1e12


@dataclass(frozen=True)
class Move:
    """From dense operations to what stands for them, in exponents; near: too close for an arc."""

    names: tuple[str, ...]
    start: tuple[float, float]
    end: tuple[float, float]

    @property
    def near(self) -> bool:
        return math.dist(self.start, self.end) <= _NEAR


def moves_of(dense: Sequence[Total], compressed: Sequence[Total], ceiling: Ceiling) -> list[Move]:
    """Moves between the same places are one; the widest last, whose arc is the highest."""
    targets = {name: one for one in compressed for name in one.covers}
    found: list[Move] = []
    for one in dense:
        if one.name not in targets:
            continue
        start = _log_place(one.intensity, ceiling)
        move = Move((one.name,), start, _log_place(targets[one.name].intensity, ceiling))
        same = next((i for i, old in enumerate(found) if _alike(old, move)), None)
        if same is None:
            found.append(move)
        else:
            old = found[same]
            found[same] = Move((*old.names, *move.names), old.start, old.end)
    return sorted(found, key=lambda move: abs(move.start[0] - move.end[0]))


def add_arcs(
    figure: go.Figure,
    moves: Sequence[Move],
    lift: float,
    engine: str,
    mode: str,
) -> list[dict[str, Any]]:
    """An arc for each move and its names at the top: points of one roof lie on one line, and straight arrows would,
    too. lift: decades that each further arc rises above the one before. Returns heads and names."""
    colour = theme.faded(theme.engine_colour(engine, mode), 0.75)
    notes: list[dict[str, Any]] = []
    for index, move in enumerate(moves):
        start, end = move.start, move.end
        top = max(start[1], end[1]) + lift * (index + 1.2)
        # A quadratic curve passes half way between its ends and its control point.
        control = ((start[0] + end[0]) / 2, 2 * top - (start[1] + end[1]) / 2)
        path = [_bezier(start, control, end, step / _STEPS) for step in range(_STEPS + 1)]
        if not move.near:
            figure.add_trace(
                go.Scatter(
                    x=[10**x for x, _ in path],
                    y=[10**y for _, y in path],
                    mode="lines",
                    line={"width": 1.3, "color": colour},
                    hoverinfo="skip",
                    name="arrow",
                )
            )
            notes.append(_head(path[-4], path[-1], colour))
        # Names of what stays stand to the right of it, above the roof where that rises.
        where: dict[str, Any] = (
            {"x": end[0], "y": end[1] + lift, "xanchor": "left", "yanchor": "bottom", "xshift": -8}
            if move.near
            else {"x": path[_STEPS // 2][0], "y": path[_STEPS // 2][1], "yanchor": "middle"}
        )
        notes.append(
            theme.label(
                mode, " · ".join(move.names), bgcolor=theme.palette(mode).surface, borderpad=1, **where
            )
        )
    return notes


def _alike(one: Move, other: Move) -> bool:
    close = math.dist(one.start, other.start) < _NEAR and math.dist(one.end, other.end) < _NEAR
    both_stay = one.near and other.near and math.dist(one.end, other.end) < 3 * _NEAR
    return close or both_stay


def _bezier(
    start: tuple[float, float], control: tuple[float, float], end: tuple[float, float], share: float
) -> tuple[float, float]:
    left, both, right = (1 - share) ** 2, 2 * share * (1 - share), share**2
    return (
        left * start[0] + both * control[0] + right * end[0],
        left * start[1] + both * control[1] + right * end[1],
    )


def _head(before: tuple[float, float], end: tuple[float, float], colour: str) -> dict[str, Any]:
    """An arrow's head at the end of an arc, in exponents."""
    return {
        "x": end[0],
        "y": end[1],
        "ax": before[0],
        "ay": before[1],
        "xref": "x",
        "yref": "y",
        "axref": "x",
        "ayref": "y",
        "showarrow": True,
        "arrowhead": 2,
        "arrowsize": 1.2,
        "arrowwidth": 1.3,
        "standoff": 6,
        "arrowcolor": colour,
        "text": "",
    }


def _log_place(intensity: float, ceiling: Ceiling) -> tuple[float, float]:
    """Where annotations have a point: plotly wants exponents on logarithmic axes."""
    return math.log10(intensity), math.log10(ceiling.attainable(intensity) / _TERA)
