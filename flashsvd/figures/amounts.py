"""Amounts that ways of computing the same differ in: bars in parts, and lines over a size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from flashsvd.figures import theme

_FITS = 0.07
"""The share of the longest bar from which a part has room for its name."""


def amounts(
    ways: Mapping[str, Mapping[str, float]], *, unit: str, mode: str = "light", height: int = 0
) -> go.Figure:
    """A bar for each way, in parts; parts of one name have one colour. The sum stands behind its bar."""
    colours = theme.palette(mode)
    inks = [colours.dense, colours.lowrank, colours.flash, theme.cache_colour(mode), colours.scale[1]]
    names = list(dict.fromkeys(name for parts in ways.values() for name in parts))
    sums = {way: sum(parts.values()) for way, parts in ways.items()}
    longest = max(sums.values(), default=1.0) or 1.0
    labels = list(ways)
    figure = go.Figure()
    for number, name in enumerate(names):
        shown = [parts.get(name, 0.0) for parts in ways.values()]
        figure.add_trace(
            go.Bar(
                y=labels,
                x=shown,
                orientation="h",
                name=name,
                marker={
                    "color": theme.faded(inks[number % len(inks)], 0.85),
                    "line": {"width": 1.5, "color": colours.surface},
                },
                text=[name if value > _FITS * longest else "" for value in shown],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                constraintext="none",
                textfont={"size": 11, "color": "#ffffff"},
                hovertemplate=f"<b>{name}</b>, %{{y}}<br>%{{x:,.4g}} {unit}<extra></extra>",
            )
        )
    notes = [
        theme.label(
            mode,
            f"<b>{_number(value)}</b>",
            colour=colours.text,
            x=value,
            y=way,
            xanchor="left",
            xshift=5,
        )
        for way, value in sums.items()
    ]
    figure.update_layout(
        **theme.layout(mode, height or 84 + 34 * len(labels)),
        barmode="stack",
        bargap=0.28,
        annotations=notes,
        xaxis=theme.axis(mode, grid=True, title=unit, range=[0, 1.12 * longest], nticks=6),
        yaxis=theme.axis(mode, grid=False, categoryorder="array", categoryarray=labels[::-1]),
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "traceorder": "normal",
            "font": {"size": 11, "color": colours.text},
            "itemclick": False,
            "itemdoubleclick": False,
        },
    )
    width = max(map(len, labels), default=0)
    figure.update_layout(showlegend=len(names) > 1, margin={"l": 14 + 6.4 * width, "r": 8, "t": 34, "b": 40})
    return figure


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    here: float | None = None,
    level: tuple[float, str] | None = None,
    steps: Sequence[str] = (),
    legend: bool = False,
    log_x: bool = False,
    mode: str = "light",
    height: int = 280,
) -> go.Figure:
    """Named lines (xs, ys), each with its name at its end. here: marked on the x axis. level: a dashed line at a y, and
    its name. steps: series that jump between whole tiles. legend: names above, for lines that end at one point. log_x:
    the x axis is logarithmic."""
    colours = theme.palette(mode)
    inks = [colours.flash, colours.lowrank, theme.cache_colour(mode), colours.dense]
    figure = go.Figure()
    notes = []
    for number, (name, (xs, ys)) in enumerate(series.items()):
        ink = inks[number % len(inks)]
        shape = "hv" if name in steps else "linear"
        figure.add_trace(
            go.Scatter(
                x=list(xs),
                y=list(ys),
                mode="lines",
                line={"width": 2.2, "color": ink, "shape": shape},
                name=name,
                hovertemplate=f"<b>{name}</b><br>{x} %{{x:,}}<br>%{{y:,.4g}}<extra></extra>",
            )
        )
        if legend:
            continue
        notes.append(
            theme.label(
                mode, name, colour=ink, x=xs[-1], y=ys[-1], xanchor="right", yanchor="bottom", yshift=2
            )
        )
    if level is not None:
        figure.add_hline(y=level[0], line={"width": 1.3, "dash": "dash", "color": colours.dense})
        notes.append(
            theme.label(mode, level[1], x=0.01, y=level[0], xref="paper", xanchor="left", yanchor="bottom")
        )
    if here is not None:
        figure.add_vline(x=here, line={"width": 1.2, "dash": "dot", "color": colours.dense})
    figure.update_layout(
        **theme.layout(mode, height),
        annotations=notes,
        hovermode="closest",
        xaxis=theme.axis(mode, grid=False, title=x),
        yaxis=theme.axis(mode, grid=True, title=y, rangemode="tozero"),
    )
    figure.update_layout(margin={"l": 56, "t": 22})
    if log_x:
        shown = sorted({value for xs, _ in series.values() for value in xs})
        figure.update_xaxes(
            type="log",
            tickvals=shown,
            ticktext=[f"{value:,g}" for value in shown],
            # Room for the last tick, which plotly leaves out at the very end.
            range=[math.log10(shown[0]) - 0.02, math.log10(shown[-1]) + 0.06],
        )
    if legend:
        figure.update_layout(
            showlegend=True,
            legend={
                "orientation": "h",
                "x": 0,
                "y": 1.02,
                "yanchor": "bottom",
                "font": {"size": 11, "color": colours.text},
                "itemclick": False,
                "itemdoubleclick": False,
            },
            margin={"t": 34},
        )
    return figure


def _number(value: float) -> str:
    """
    >>> _number(1234.5), _number(72.0), _number(7.53)
    ('1,234', '72', '7.53')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
