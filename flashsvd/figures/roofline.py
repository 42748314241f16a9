"""What the limit is: operations under a machine's roof, and the least time of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.figures.least_times import words_of
from flashsvd.figures.roofline_moves import add_arcs, moves_of
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
    moves = moves_of(dense, compressed, ceiling)
    # Room above the roof for the highest arc and its name.
    decades = math.log10(ceiling.flops_s / floor) / (1 - _LIFT * (len(moves) + 2))
    notes = add_arcs(figure, moves, _LIFT * decades, engine, mode)
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
            customdata=[[one.name, words_of(one), 100 * one.seconds / whole] for one in ops],
            hovertemplate=(
                f"<b>%{{customdata[0]}}</b>, {engine}<br>%{{customdata[1]}}<br>"
                "%{customdata[2]:.0f} % of the least time<extra></extra>"
            ),
            name=engine,
        )
    )


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
