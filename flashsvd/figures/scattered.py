"""Named points, to see whether one number says anything of another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from flashsvd.figures import theme


def scattered(
    points: Mapping[str, tuple[float, float]],
    *,
    x: str,
    y: str,
    log_y: bool = False,
    mode: str = "light",
    height: int = 280,
) -> go.Figure:
    """Points (x, y), each with its name beside it; both axes from zero, or the y axis logarithmic."""
    colours = theme.palette(mode)
    xs, ys = [point[0] for point in points.values()], [point[1] for point in points.values()]
    drawn = [math.log10(value) for value in ys] if log_y else ys
    figure = go.Figure(
        go.Scatter(
            x=xs,
            y=ys,
            text=list(points),
            mode="markers+text",
            textposition=[_side(index, xs, drawn) for index in range(len(xs))],
            textfont={"size": 12, "color": colours.text},
            marker={"size": 11, "color": colours.flash},
            hovertemplate=f"<b>%{{text}}</b><br>{x} %{{x:,.4g}}<br>{y} %{{y:,.4g}}<extra></extra>",
            cliponaxis=False,
        )
    )
    top = max(ys, default=1.0)
    figure.update_layout(
        **theme.layout(mode, height),
        hovermode="closest",
        xaxis=theme.axis(mode, grid=True, title=x, range=[0, 1.1 * max(xs, default=1.0)]),
        yaxis=theme.axis(mode, grid=True, title=y, range=[0, 1.1 * top]),
    )
    if log_y:
        low = math.floor(math.log10(min(ys)))
        ticks = [10.0**power for power in range(low, math.ceil(math.log10(top)) + 1)]
        figure.update_yaxes(
            type="log",
            range=[low, math.log10(top) + 0.15],
            tickvals=ticks,
            ticktext=[f"{tick:g}" for tick in ticks],
        )
    figure.update_layout(margin={"l": 60, "t": 14})
    return figure


def _side(index: int, xs: Sequence[float], ys: Sequence[float]) -> str:
    """Right of a point, or left where another stands close by on the right. xs, ys: as drawn."""
    width, height = max(xs), (max(ys) - min(ys)) or 1.0

    def close(other: int) -> bool:
        near = abs(xs[other] - xs[index]) < 0.06 * width and abs(ys[other] - ys[index]) < 0.08 * height
        return near and (xs[other], other) > (xs[index], index)

    return (
        "middle left" if any(close(other) for other in range(len(xs)) if other != index) else "middle right"
    )
