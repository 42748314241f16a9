"""Memory drawn: every allocation as a band, or areas by category where there are too many."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from flashsvd.errors import format_bytes
from flashsvd.figures import theme
from flashsvd.figures.memory_bands import Bands
from flashsvd.figures.memory_track import Axis, Track
from flashsvd.figures.sampling import envelope
from flashsvd.measure.allocations import CATEGORIES

MAX_POINTS = 1400
"""Per trace of an area."""


def category_colours(engine: str, mode: str) -> dict[str, str]:
    """The colour of each category in a run of an engine."""
    colour = theme.engine_colour(engine, mode)
    return {
        "kv cache": theme.cache_colour(mode),
        "activation": theme.faded(colour, 0.5),
        "workspace": colour,
    }


def _words(row: Any) -> str:
    where = f"layer {row.layer + 1}" if row.layer >= 0 else "outside the layers"
    return (
        f"<b>{format_bytes(int(row.bytes))}</b> {row.category}<br>{escape(str(row.op))} · {where}"
        f"<br>{escape(str(row.module) or 'model')}<br>op {row.born} to {row.freed}"
    )


def draw_bands(
    figure: go.Figure,
    track: Track,
    found: pd.DataFrame,
    stacked: Bands,
    mode: str,
    unit: tuple[float, str],
    selected: int | None,
    source: str,
) -> None:
    colours = category_colours(track.engine, mode)
    surface = theme.palette(mode).surface
    rows = {row.Index: row for row in found.itertuples()}
    for name in CATEGORIES:
        xs: list[float | None] = []
        ys: list[float | None] = []
        for band in stacked.bands:
            if rows[band.row].category == name:
                x, y = band.outline()
                xs += [*x, x[0], None]
                ys += [*(value / unit[0] for value in y), y[0] / unit[0], None]
        if xs:
            figure.add_trace(
                go.Scatter(
                    x=xs,
                    y=ys,
                    mode="lines",
                    line={"width": 0.7, "color": surface},
                    fill="toself",
                    fillcolor=colours[name],
                    hoverinfo="skip",
                    name=name,
                )
            )
    marks = [(band.row, *point) for band in stacked.bands for point in zip(*band.marks(), strict=True)]
    figure.add_trace(
        go.Scatter(
            x=[x for _, x, _ in marks],
            y=[y / unit[0] for _, _, y in marks],
            mode="markers",
            marker={"size": 10, "opacity": 0, "color": theme.palette(mode).muted},
            selected={"marker": {"opacity": 0}},
            unselected={"marker": {"opacity": 0}},
            customdata=[["a", row] for row, _, _ in marks],
            text=[_words(rows[row]) for row, _, _ in marks],
            hovertemplate=f"%{{text}}<extra>{escape(source)}</extra>",
            name="allocations",
        )
    )
    chosen = next((band for band in stacked.bands if band.row == selected), None)
    if chosen is not None:
        x, y = chosen.outline()
        figure.add_trace(
            go.Scatter(
                x=[*x, x[0]],
                y=[value / unit[0] for value in (*y, y[0])],
                mode="lines",
                line={"width": 2, "color": theme.palette(mode).text},
                hoverinfo="skip",
                name="selected",
            )
        )


def draw_areas(
    figure: go.Figure,
    track: Track,
    axis: Axis,
    left: float,
    right: float,
    mode: str,
    unit: tuple[float, str],
    source: str,
) -> None:
    found, colours = track.levels, category_colours(track.engine, mode)
    x = found.x if axis == "op" else found.time_ms
    inside = np.flatnonzero((x >= left) & (x <= right))
    if len(inside) and inside[0]:
        inside = np.concatenate([[inside[0] - 1], inside])
    keep = inside[envelope(found.total[inside], MAX_POINTS)]
    below = np.zeros(len(keep))
    first = True
    for name in CATEGORIES:
        values = found.bytes[name][keep]
        if not values.any():
            continue
        below = below + values
        figure.add_trace(
            go.Scatter(
                x=x[keep],
                y=below / unit[0],
                mode="lines",
                # A width, so that a peak that lasts one op is still seen.
                line={"width": 1, "shape": "hv", "color": colours[name]},
                fill="tozeroy" if first else "tonexty",
                fillcolor=colours[name],
                hoverinfo="skip",
                name=name,
            )
        )
        first = False
    rows = track.timeline.loc[found.row[keep]]
    words = [
        f"<b>{format_bytes(int(total))}</b> alive<br>{escape(str(op))} · {escape(str(module) or 'model')}"
        f"<br>op {int(at)}"
        for total, op, module, at in zip(below, rows["op"], rows["module"], found.x[keep], strict=True)
    ]
    figure.add_trace(
        go.Scatter(
            x=x[keep],
            y=below / unit[0],
            mode="markers",
            marker={"size": 9, "opacity": 0, "color": theme.palette(mode).muted},
            selected={"marker": {"opacity": 0}},
            unselected={"marker": {"opacity": 0}},
            # After an op is still that op.
            customdata=[
                ["e", int(at) - int(index % 2)] for at, index in zip(found.x[keep], keep, strict=True)
            ],
            text=words,
            hovertemplate=f"%{{text}}<extra>{escape(source)}</extra>",
            name="ops",
        )
    )
