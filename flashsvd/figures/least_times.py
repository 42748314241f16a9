"""The least time of every operation, dense beside compressed."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.roofline import Total


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
                customdata=[words_of(one) for _, one in shown],
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


def words_of(one: Total) -> str:
    """An operation's numbers, for a tooltip."""
    unit, factor = time_unit(one.seconds)
    return (
        f"at least {_number(one.seconds * factor)} {unit}, bound by {one.bound}<br>"
        f"{one.flops / 1e9:,.1f} GFLOP, {one.bytes / theme.MIB:,.1f} MiB, {one.intensity:,.0f} FLOP per byte"
    )


def _rows(dense: Sequence[Total], compressed: Sequence[Total]) -> list[str]:
    """Names in the order of a layer, a fused operation after those that it stands for."""
    names = [one.name for one in dense]
    for one in compressed:
        if one.name not in names:
            last = max((names.index(name) for name in one.covers if name in names), default=len(names) - 1)
            names.insert(last + 1, one.name)
    return names


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"
