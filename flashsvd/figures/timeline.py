"""Memory while a model runs: stacked by category over the layers, another run as a ghost outline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from flashsvd.errors import format_bytes
from flashsvd.figures import theme
from flashsvd.figures.sampling import envelope
from flashsvd.results import EngineRun

MAX_POINTS = 1500
"""Per trace: more than the pixels of a wide screen, few enough to stay smooth."""

_EDGE = 0.3
"""Width, in layers, of what runs before the first block and after the last."""

_BAND = 0.13
"""Height of the weights' band, as a share of the highest activation: weights stay, so they need no scale."""


@dataclass(frozen=True)
class Track:
    """One run over layer progress: x in layers, bytes beyond the weights."""

    x: NDArray[np.float64]
    activation: NDArray[np.float64]
    workspace: NDArray[np.float64]
    words: list[str]

    @property
    def total(self) -> NDArray[np.float64]:
        return self.activation + self.workspace


def layer_progress(timeline: pd.DataFrame, layers: int) -> NDArray[np.float64]:
    """Where each row falls on the axis of layers: 0 to `layers`, with a margin for embeddings and head.

    A row keeps the latest layer reached, so that memory freed late does not jump back.
    """
    layer = timeline["layer"].to_numpy(dtype=float)
    reached = np.maximum.accumulate(layer)
    inside = np.flatnonzero(layer >= 0)
    last = inside[-1] if len(inside) else -1
    stage = np.where(np.arange(len(layer)) > last, float(layers), reached)
    event = timeline["event"].to_numpy(dtype=float)
    x = np.empty(len(layer))
    for value in np.unique(stage):
        rows = np.flatnonzero(stage == value)
        first, count = event[rows[0]], event[rows[-1]] - event[rows[0]] + 1
        share = (event[rows] - first) / count
        if value < 0:
            x[rows] = (share - 1) * _EDGE
        elif value >= layers:
            x[rows] = layers + share * _EDGE
        else:
            x[rows] = value + share
    return np.maximum.accumulate(x) if len(x) else x


def track(run: EngineRun, layers: int, limit: int = MAX_POINTS) -> Track:
    """A run's timeline thinned for drawing; the highest moment of every stretch is kept."""
    rows = run.timeline
    if rows.empty:
        empty = np.zeros(0)
        return Track(empty, empty, empty, [])
    moved = rows["bytes"].to_numpy(dtype=float)
    category = rows["category"].to_numpy()
    activation = np.cumsum(np.where(category == "activation", moved, 0.0))
    workspace = np.cumsum(np.where(category == "workspace", moved, 0.0))
    keep = envelope(activation + workspace, limit)
    picked = rows.iloc[keep]
    words = [f"{op} · {module}" for op, module in zip(picked["op"], picked["module"], strict=True)]
    return Track(layer_progress(rows, layers)[keep], activation[keep], workspace[keep], words)


def timeline(
    run: EngineRun,
    layers: int,
    *,
    ghost: EngineRun | None = None,
    mode: str = "light",
    height: int = 300,
    source: str = "",
) -> go.Figure:
    """Stacked activations and workspace of `run` above a band for its weights; `ghost` as a dashed outline.

    source: machine and seed, for the hover text.
    """
    colours = theme.palette(mode)
    colour = theme.engine_colour(run.engine, mode)
    mine = track(run, layers)
    other = track(ghost, layers) if ghost is not None and ghost.engine != run.engine else None
    highest = max([float(t.total.max()) for t in (mine, other) if t is not None and len(t.x)] or [1.0]) or 1.0
    band = highest / theme.MIB * _BAND
    start, end = -_EDGE, layers + _EDGE

    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[start, end],
            y=[-band, -band],
            mode="lines",
            line={"width": 0},
            fill="tozeroy",
            fillcolor=colours.weights,
            hoverinfo="skip",
            name="weights",
        )
    )
    # Areas are drawn between explicit lines: plotly's own stacking merges moments that share one x.
    for name, values, top, fill in (
        ("activation", mine.activation, mine.activation, theme.faded(colour, 0.55)),
        ("workspace", mine.workspace, mine.total, colour),
    ):
        figure.add_trace(
            go.Scatter(
                x=mine.x,
                y=top / theme.MIB,
                customdata=list(zip(values / theme.MIB, mine.words, strict=True)),
                mode="lines",
                # A width, so that a peak that lasts one op is still seen.
                line={"width": 1, "shape": "hv", "color": fill},
                fill="tozeroy" if name == "activation" else "tonexty",
                fillcolor=fill,
                name=name,
                hovertemplate=(
                    f"{run.engine} {name} %{{customdata[0]:.2f}} MiB<br>%{{customdata[1]}}<extra>{source}</extra>"
                ),
            )
        )
    if other is not None and ghost is not None:
        figure.add_trace(
            go.Scatter(
                x=other.x,
                y=other.total / theme.MIB,
                customdata=other.words,
                mode="lines",
                line={
                    "width": 1.3,
                    "shape": "hv",
                    "dash": "4px,3px",
                    "color": theme.engine_colour(ghost.engine, mode),
                },
                name=ghost.engine,
                hovertemplate=f"{ghost.engine} %{{y:.2f}} MiB<br>%{{customdata}}<extra>{source}</extra>",
            )
        )
    notes: list[dict[str, object] | None] = [_weights_note(run, ghost, mode, band, layers)]
    notes.append(_peak_note(run, mine, mode, above=other is None))
    if other is not None and ghost is not None:
        notes.append(_peak_note(ghost, other, mode, above=True))
    figure.update_layout(
        **theme.layout(mode, height),
        annotations=[note for note in notes if note],
        hovermode="closest",
        xaxis=theme.axis(
            mode,
            grid=False,
            title="layer",
            range=[start, end],
            tickvals=[index + 0.5 for index in _ticks(layers)],
            ticktext=[str(index + 1) for index in _ticks(layers)],
        ),
        yaxis=theme.axis(
            mode,
            grid=True,
            range=[-band, highest / theme.MIB * 1.14],
            tickvals=_round_ticks(highest / theme.MIB),
        ),
    )
    return figure


def _ticks(layers: int) -> range:
    return range(0, layers, max(1, layers // 12))


def _round_ticks(top: float) -> list[float]:
    step = 10.0 ** np.floor(np.log10(top / 3)) if top > 0 else 1.0
    step *= next(factor for factor in (1, 2, 5, 10) if top / (step * factor) <= 5)
    return [float(value) for value in np.arange(0, top * 1.05, step)]


def _peak_note(run: EngineRun, drawn: Track, mode: str, above: bool) -> dict[str, object] | None:
    if not len(drawn.x):
        return None
    at = int(np.argmax(drawn.total))
    middle = (float(drawn.x[0]) + float(drawn.x[-1])) / 2
    colour = theme.engine_colour(run.engine, mode) if above else theme.palette(mode).text
    left = drawn.x[at] <= middle
    return theme.label(
        mode,
        f"<b>{run.engine} peak {format_bytes(run.peak_activation_bytes)}</b>",
        colour=colour,
        x=float(drawn.x[at]),
        y=float(drawn.total[at]) / theme.MIB,
        xanchor="left" if left else "right",
        yanchor="bottom",
        yshift=3,
        bgcolor=theme.palette(mode).surface,
        borderpad=1,
    )


def _weights_note(
    run: EngineRun, ghost: EngineRun | None, mode: str, band: float, layers: int
) -> dict[str, object]:
    text = f"weights {format_bytes(run.weight_bytes)}"
    if ghost is not None and ghost.engine != run.engine:
        text += f", {ghost.engine} {format_bytes(ghost.weight_bytes)}"
    return theme.label(
        mode,
        text + " · not to scale",
        colour=theme.palette(mode).text,
        x=-_EDGE,
        xshift=6,
        y=-band / 2,
        xanchor="left",
        yanchor="middle",
    )
