"""The lane below a map of memory: what runs, layer by layer."""

from __future__ import annotations

import math
from dataclasses import replace
from html import escape

import numpy as np
import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.figures.memory_bands import within
from flashsvd.figures.memory_lane import Stretch, lane
from flashsvd.figures.memory_track import Axis, Track, placed


def draw_lane(
    figure: go.Figure, track: Track, axis: Axis, low: float, high: float, left: float, right: float, mode: str
) -> None:
    colours = theme.palette(mode)
    stretches = lane(placed(within(track.found, low, high), axis), left, right)
    for parity in (0, 1):
        xs: list[float | None] = []
        ys: list[float | None] = []
        for stretch in stretches[parity::2]:
            xs += [stretch.start, stretch.stop, stretch.stop, stretch.start, stretch.start, None]
            ys += [0, 0, 1, 1, 0, None]
        figure.add_trace(
            go.Scatter(
                x=xs,
                y=ys,
                yaxis="y2",
                mode="lines",
                line={"width": 0},
                fill="toself",
                fillcolor=colours.weights if parity == 0 else theme.faded(colours.weights, 0.45),
                hoverinfo="skip",
                name="lane",
            )
        )
    named = _named(stretches, right - left)
    figure.add_trace(
        go.Scatter(
            x=[(s.start + s.stop) / 2 for s in named],
            y=[0.5] * len(named),
            yaxis="y2",
            mode="text",
            text=[s.label for s in named],
            textfont={"size": 10.5, "color": colours.text},
            hoverinfo="skip",
            name="lane names",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=[(s.start + s.stop) / 2 for s in stretches],
            y=[0.5] * len(stretches),
            yaxis="y2",
            mode="markers",
            marker={"size": 12, "opacity": 0, "color": theme.palette(mode).muted},
            customdata=[["l", s.layer] for s in stretches],
            selected={"marker": {"opacity": 0}},
            unselected={"marker": {"opacity": 0}},
            text=[
                (f"layer {s.layer + 1}" if s.layer >= 0 else "outside the layers")
                + ("" if s.label == str(s.layer + 1) else f" · {escape(s.label)}")
                for s in stretches
            ],
            hovertemplate="%{text}<extra></extra>",
            name="lane marks",
        )
    )


def _named(stretches: list[Stretch], width: float) -> list[Stretch]:
    """The stretches with room for their names, about 7 px a letter on 560 px; of layers too narrow, every few."""

    def room(stretch: Stretch) -> float:
        return 560 * (stretch.stop - stretch.start) / width

    # The last part of a module's name, where the whole has no room.
    shorter = [replace(s, label=s.label.rpartition(".")[2]) for s in stretches]
    either = [
        full if room(full) > 7 * len(full.label) + 4 else s
        for full, s in zip(stretches, shorter, strict=True)
    ]
    fits = [s for s in either if room(s) > 7 * len(s.label) + 4]
    layers = [s for s in stretches if s.layer >= 0 and s.label == str(s.layer + 1)]
    if fits or not layers:
        return fits
    step = math.ceil(28 / max(float(np.median([room(s) for s in layers])), 0.1))
    return layers[::step]
