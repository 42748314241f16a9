"""What the limit is: operations under a machine's roof, and the least time of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.roofline import Ceiling, Total

_SYMBOLS = {
    "q, k, v": "circle",
    "attention": "diamond",
    "output": "square",
    "up": "triangle-up",
    "down": "triangle-down",
    "feed-forward": "hexagon",
    "head": "pentagon",
}
_SMALLEST, _LARGEST = 9.0, 24.0
_TERA = 1e12
_LIFT = 0.052
"""How far each further arc rises above the one before, of the height."""
_NEAR = 0.05
_STEPS = 24


@dataclass(frozen=True)
class Star:
    """A whole model as it was measured: FLOP per byte, FLOP/s reached, and words for the tooltip."""

    engine: str
    intensity: float
    flops_s: float
    words: str


def roofline(
    ceiling: Ceiling,
    dense: Sequence[Total],
    compressed: Sequence[Total],
    engine: str,
    *,
    measured: Sequence[Star] = (),
    mode: str = "light",
    height: int = 400,
) -> go.Figure:
    """TFLOP/s against FLOP per byte, both logarithmic: the roof, and every operation at the most it can reach.

    The larger a marker, the more of its model's least time it takes. An arrow leads from each dense operation to the
    one that stands for it. Stars are whole models as measured, below the roof by what they miss.
    """
    colours = theme.palette(mode)
    figure = go.Figure()
    marks = [*(one.intensity for one in dense), *(one.intensity for one in compressed)]
    marks += [star.intensity for star in measured]
    low = min([*marks, ceiling.ridge]) / 3
    high = max([*marks, ceiling.ridge]) * 3
    ridge = ceiling.ridge
    roof = [low, ridge, high]
    figure.add_trace(
        go.Scatter(
            x=roof,
            y=[ceiling.attainable(x) / _TERA for x in roof],
            mode="lines",
            line={"width": 2.5, "color": colours.text},
            fill="tozeroy",
            fillcolor=theme.faded(colours.dense, 0.07),
            hoverinfo="skip",
            name="roof",
        )
    )
    figure.add_vline(x=ridge, line={"width": 1, "dash": "dot", "color": colours.dense})
    floor = min([ceiling.attainable(x) for x in marks or [low]] + [star.flops_s for star in measured]) / 3
    moves = _moves(dense, compressed, ceiling)
    # Room above the roof for the highest arc and its name.
    decades = math.log10(ceiling.flops_s / floor) / (1 - _LIFT * (len(moves) + 2))
    notes = _add_arcs(figure, moves, _LIFT * decades, engine, mode)
    _add_ops(figure, dense, ceiling, "dense", colours.surface, mode)
    _add_ops(figure, compressed, ceiling, engine, None, mode)
    for star in measured:
        colour = theme.engine_colour(star.engine, mode)
        figure.add_trace(
            go.Scatter(
                x=[star.intensity],
                y=[star.flops_s / _TERA],
                mode="markers",
                marker={
                    "symbol": "star",
                    "size": 17,
                    "color": colour,
                    "line": {"width": 1.5, "color": colours.surface},
                },
                hovertemplate=star.words + "<extra>measured</extra>",
                name=f"{star.engine}, measured",
            )
        )
    figure.update_layout(
        **theme.layout(mode, height),
        hovermode="closest",
        annotations=[
            *notes,
            *_roof_labels(ceiling, (low, high), floor, marks, mode),
        ],
        xaxis=_log_axis(mode, "FLOP per byte moved", low, high),
        yaxis=_log_axis(mode, "TFLOP/s at most", floor / _TERA, floor * 10**decades / _TERA),
    )
    figure.update_layout(margin={"l": 56, "t": 10})
    return figure


def least_times(
    dense: Sequence[Total],
    compressed: Sequence[Total],
    engine: str,
    *,
    mode: str = "light",
    height: int = 300,
) -> go.Figure:
    """The least time of every operation over all layers, dense above compressed, with what bounds it."""
    colours = theme.palette(mode)
    figure = go.Figure()
    names = _rows(dense, compressed)
    longest = max((one.seconds for one in (*dense, *compressed)), default=1.0)
    unit, factor = time_unit(longest)
    for kind, members, place in (("dense", dense, 1), (engine, compressed, 0)):
        rows = {one.name: one for one in members}
        shown = [(name, rows[name]) for name in names if name in rows]
        colour = theme.engine_colour(kind, mode)
        figure.add_trace(
            go.Bar(
                y=[name for name, _ in shown],
                x=[one.seconds * factor for _, one in shown],
                orientation="h",
                offsetgroup=kind,
                width=0.36,
                offset=0.0 if place else -0.38,
                marker={"color": colour, "cornerradius": 2},
                text=[f"{_number(one.seconds * factor)} {one.bound}" for _, one in shown],
                textposition="outside",
                textfont={"size": 11, "color": colours.muted},
                cliponaxis=False,
                customdata=[_words(one) for _, one in shown],
                hovertemplate=f"<b>%{{y}}</b>, {kind}<br>%{{customdata}}<extra></extra>",
                name=kind,
            )
        )
    figure.update_layout(
        **theme.layout(mode, height),
        bargap=0.2,
        xaxis=theme.axis(
            mode, grid=False, title=f"{unit}, all layers", range=[0, 1.42 * longest * factor], nticks=5
        ),
        yaxis=theme.axis(mode, grid=False, categoryorder="array", categoryarray=names[::-1]),
    )
    figure.update_layout(margin={"l": 84, "r": 4, "t": 4})
    return figure


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit that a time reads best in, and how many of it are in a second.

    >>> time_unit(0.0042), time_unit(3e-5)
    (('ms', 1000.0), ('µs', 1000000.0))
    """
    return ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)


def _rows(dense: Sequence[Total], compressed: Sequence[Total]) -> list[str]:
    """Names in the order of a layer, a fused operation after those that it stands for."""
    names = [one.name for one in dense]
    for one in compressed:
        if one.name not in names:
            last = max((names.index(name) for name in one.covers if name in names), default=len(names) - 1)
            names.insert(last + 1, one.name)
    return names


def _add_ops(
    figure: go.Figure,
    ops: Sequence[Total],
    ceiling: Ceiling,
    engine: str,
    inside: str | None,
    mode: str,
) -> None:
    colour = theme.engine_colour(engine, mode)
    whole = sum(one.seconds for one in ops) or 1.0
    figure.add_trace(
        go.Scatter(
            x=[one.intensity for one in ops],
            y=[ceiling.attainable(one.intensity) / _TERA for one in ops],
            mode="markers",
            marker={
                "symbol": [_SYMBOLS.get(one.name, "circle") for one in ops],
                "size": [_SMALLEST + (_LARGEST - _SMALLEST) * math.sqrt(one.seconds / whole) for one in ops],
                "color": inside or colour,
                "line": {"width": 2, "color": colour if inside else theme.palette(mode).surface},
                "opacity": 0.92,
            },
            customdata=[[one.name, _words(one), 100 * one.seconds / whole] for one in ops],
            hovertemplate=(
                f"<b>%{{customdata[0]}}</b>, {engine}<br>%{{customdata[1]}}<br>"
                "%{customdata[2]:.0f} % of the least time<extra></extra>"
            ),
            name=engine,
        )
    )


def _words(one: Total) -> str:
    unit, factor = time_unit(one.seconds)
    return (
        f"at least {_number(one.seconds * factor)} {unit}, bound by {one.bound}<br>"
        f"{one.flops / 1e9:,.1f} GFLOP, {one.bytes / theme.MIB:,.1f} MiB, {one.intensity:,.0f} FLOP per byte"
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def _add_arcs(
    figure: go.Figure,
    moves: Sequence[_Move],
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


@dataclass(frozen=True)
class _Move:
    """From dense operations to what stands for them, in exponents; near: too close for an arc."""

    names: tuple[str, ...]
    start: tuple[float, float]
    end: tuple[float, float]

    @property
    def near(self) -> bool:
        return math.dist(self.start, self.end) <= _NEAR


def _moves(dense: Sequence[Total], compressed: Sequence[Total], ceiling: Ceiling) -> list[_Move]:
    """Moves between the same places are one; the widest last, whose arc is the highest."""
    targets = {name: one for one in compressed for name in one.covers}
    found: list[_Move] = []
    for one in dense:
        if one.name not in targets:
            continue
        start = _log_place(one.intensity, ceiling)
        move = _Move((one.name,), start, _log_place(targets[one.name].intensity, ceiling))
        same = next((i for i, old in enumerate(found) if _alike(old, move)), None)
        if same is None:
            found.append(move)
        else:
            old = found[same]
            found[same] = _Move((*old.names, *move.names), old.start, old.end)
    return sorted(found, key=lambda move: abs(move.start[0] - move.end[0]))


def _alike(one: _Move, other: _Move) -> bool:
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


def _roof_labels(
    ceiling: Ceiling, span: tuple[float, float], floor: float, marks: Sequence[float], mode: str
) -> list[dict[str, Any]]:
    """Both rates, that of memory where there is most room, and what binds on either side."""
    low, high = span
    free = max(
        (low * (ceiling.ridge / low) ** (step / 20) for step in range(3, 18)),
        key=lambda place: min((abs(math.log10(place / mark)) for mark in marks), default=0.0),
    )
    ridge = math.log10(ceiling.ridge)
    text = theme.palette(mode).text
    return [
        theme.label(
            mode,
            f"{ceiling.flops_s / _TERA:,.0f} TFLOP/s",
            colour=text,
            x=math.log10(high),
            y=math.log10(ceiling.flops_s / _TERA),
            xanchor="right",
            yanchor="top",
            yshift=-2,
        ),
        theme.label(
            mode,
            f"{ceiling.bytes_s / _TERA:.2g} TB/s",
            colour=text,
            x=math.log10(free),
            y=math.log10(ceiling.attainable(free) / _TERA),
            xanchor="right",
            yanchor="bottom",
            xshift=-6,
        ),
        theme.label(
            mode,
            "bound by memory ◂",
            x=ridge,
            y=math.log10(floor / _TERA),
            xanchor="right",
            yanchor="bottom",
            xshift=-6,
        ),
        theme.label(
            mode,
            "▸ by compute",
            x=ridge,
            y=math.log10(floor / _TERA),
            xanchor="left",
            yanchor="bottom",
            xshift=6,
        ),
    ]


def _log_axis(mode: str, title: str, low: float, high: float) -> dict[str, Any]:
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    marks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
    return theme.axis(
        mode,
        grid=True,
        title=title,
        type="log",
        range=[math.log10(low), math.log10(high)],
        tickvals=marks,
        ticktext=[f"{mark:,.10g}" for mark in marks],
    )
