"""Two kept curves of the score against keep."""

from __future__ import annotations

import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.figures.curve import hover
from flashsvd.figures.score_axis import ScoreAxis
from flashsvd.results import Curve


def runs_curves(a: Curve, b: Curve, *, mode: str = "light", height: int = 320) -> go.Figure:
    """Score over keep in percent with 95 % intervals: a in blue, b in the colour of text with open marks.

    Both scores must be of one metric: the axis is that of a's.
    """
    colours = theme.palette(mode)
    axis = ScoreAxis.of(a.dense)
    figure = go.Figure()
    values = []
    for letter, result, colour in (("A", a, colours.flash), ("B", b, colours.text)):
        points = sorted(result.points, key=lambda point: point.keep)
        metrics = [point.metric for point in points]
        values += [end for metric in metrics for end in (metric.low, metric.high)]
        at = [axis.at(metric.value) for metric in metrics]
        figure.add_trace(
            go.Scatter(
                x=[100 * point.keep for point in points],
                y=at,
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [axis.at(metric.high) - y for metric, y in zip(metrics, at, strict=True)],
                    "arrayminus": [y - axis.at(metric.low) for metric, y in zip(metrics, at, strict=True)],
                    "color": colour,
                    "thickness": 1,
                    "width": 3,
                },
                customdata=[hover(metric, result.machine.label) for metric in metrics],
                mode="lines+markers",
                line={"width": 2, "color": colour},
                marker={
                    "size": 7,
                    "color": colour if letter == "A" else colours.surface,
                    "line": {"width": 2, "color": colour},
                },
                hovertemplate=f"{letter}, keep %{{x:.1f}} %<br>%{{customdata}}<extra></extra>",
                name=letter,
            )
        )
    figure.update_layout(
        **theme.layout(mode, height),
        hovermode="closest",
        xaxis=theme.axis(mode, grid=False, title="keep %", range=[0, 103]),
        yaxis=axis.settings(mode, values),
    )
    return figure
