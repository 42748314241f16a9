"""Memory of two kept runs on one axis of layers."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from flashsvd.errors import format_bytes
from flashsvd.figures import theme
from flashsvd.figures.timeline import track
from flashsvd.results import EngineRun


def runs_memory(
    a: EngineRun,
    b: EngineRun,
    layers: tuple[int, int],
    *,
    titles: tuple[str, str] = ("A", "B"),
    mode: str = "light",
    height: int = 240,
    sources: tuple[str, str] = ("", ""),
) -> go.Figure:
    """Bytes beyond the weights: a as an area in its engine's colour, b as a line. MiB over layers; over the share of
    depth in percent where the two models have different numbers of `layers`.

    titles: what the hover texts and the key call the runs; sources: machine and seed of each.
    """
    colours = theme.palette(mode)
    same = layers[0] == layers[1]
    figure = go.Figure()
    notes: list[dict[str, object]] = []
    highest = 1.0
    for number, (run, count, title, source) in enumerate(zip((a, b), layers, titles, sources, strict=True)):
        drawn = track(run, count)
        if not len(drawn.x):
            continue
        colour = theme.engine_colour(run.engine, mode) if number == 0 else colours.text
        x = drawn.x if same else 100 * drawn.x / count
        y = drawn.total / theme.MIB
        highest = max(highest, float(y.max())) if notes else float(y.max())
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                customdata=drawn.words,
                mode="lines",
                line={"width": 1.2, "shape": "hv", "color": colour},
                fill="tozeroy" if number == 0 else None,
                fillcolor=theme.faded(colour, 0.35) if number == 0 else None,
                name=title,
                hovertemplate=f"{_plain(title)} %{{y:.2f}} MiB<br>%{{customdata}}<extra>{_plain(source)}</extra>",
            )
        )
        at = int(np.argmax(y))
        left = x[at] <= (x[0] + x[-1]) / 2
        notes.append(
            theme.label(
                mode,
                f"<b>{'AB'[number]} peak {format_bytes(run.peak_activation_bytes)}</b>",
                colour=colour,
                x=float(x[at]),
                y=float(y[at]),
                xanchor="left" if left else "right",
                yanchor="bottom",
                yshift=2,
                bgcolor=colours.surface,
                borderpad=1,
            )
        )
    ticks = list(range(0, layers[0], max(1, layers[0] // 12)))
    across = (
        {
            "title": "layer",
            "tickvals": [index + 0.5 for index in ticks],
            "ticktext": [str(index + 1) for index in ticks],
        }
        if same
        else {"title": "share of depth, %", "tickvals": [0, 25, 50, 75, 100]}
    )
    figure.update_layout(
        **theme.layout(mode, height),
        annotations=_apart(notes, highest),
        hovermode="closest",
        xaxis=theme.axis(mode, grid=False, **across),
        yaxis=theme.axis(mode, grid=True, range=[0, highest * 1.2], nticks=5, title="MiB"),
    )
    return figure


def _plain(text: str) -> str:
    """Text that plotly reads no markup in."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _apart(notes: list[dict[str, object]], highest: float) -> list[dict[str, object]]:
    """Two labels of nearly equal peaks, one above the other."""
    if len(notes) == 2:
        a, b = notes
        near = abs(float(str(a["y"])) - float(str(b["y"]))) < 0.12 * highest
        if near:
            top = a if float(str(a["y"])) >= float(str(b["y"])) else b
            low = b if top is a else a
            low["yanchor"], low["yshift"] = "top", -3
    return notes
