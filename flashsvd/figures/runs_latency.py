"""Latency of two kept runs: the median with its 20 % and 80 % quantiles, engine by engine."""

from __future__ import annotations

import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.results import Comparison


def runs_latency(
    a: Comparison, b: Comparison, engines: tuple[str, ...], *, mode: str = "light", height: int = 180
) -> go.Figure:
    """One row per engine and run, milliseconds; a filled mark is run A, an open one run B."""
    colours = theme.palette(mode)
    figure = go.Figure()
    places, labels = [], []
    most = 0.0
    for row, engine in enumerate(engines):
        for letter, result, shift in (("A", a, -0.2), ("B", b, 0.2)):
            run = result.run(engine)
            if run is None:
                continue
            took, colour = run.latency_ms, theme.engine_colour(engine, mode)
            most = max(most, took.p80)
            places.append(row + shift)
            labels.append(f"{engine} {letter}")
            figure.add_trace(
                go.Scatter(
                    x=[took.p50],
                    y=[row + shift],
                    mode="markers",
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": [took.p80 - took.p50],
                        "arrayminus": [took.p50 - took.p20],
                        "color": colour,
                        "thickness": 2,
                        "width": 5,
                    },
                    marker={
                        "size": 9,
                        "color": colour if letter == "A" else colours.surface,
                        "line": {"width": 2, "color": colour},
                    },
                    name=f"{engine} {letter}",
                    hovertemplate=(
                        f"{letter}, {engine}: median {took.p50:.2f} ms<br>p20 {took.p20:.2f}, p80 {took.p80:.2f}, "
                        f"{run.repeats} repeats<extra></extra>"
                    ),
                )
            )
    figure.update_layout(
        **theme.layout(mode, height),
        hovermode="closest",
        xaxis=theme.axis(mode, grid=True, title="ms", range=[0, most * 1.08 or 1.0], nticks=5),
        yaxis=theme.axis(
            mode, grid=False, range=[len(engines) - 0.45, -0.55], tickvals=places, ticktext=labels
        ),
    )
    figure.update_layout(margin={"l": 74, "t": 6})
    return figure
