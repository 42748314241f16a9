"""What programs of a launch hold, one after another: a figure that plays and can be scrubbed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from flashsvd.errors import InputError
from flashsvd.figures import theme
from flashsvd.figures.tiles_program import program_tiles
from flashsvd.onchip.programs import Moment

_BELOW = 100
"""Pixels under the tiles, for the words and the controls."""


def program_film(
    moments: Sequence[Moment],
    *,
    counted: str = "program",
    mode: str = "light",
    height: int = 300,
    milliseconds: int = 500,
) -> go.Figure:
    """The pictures of `program_tiles`, with a slider over them and a button that plays them.

    counted: what the slider counts, from 0. milliseconds: how long each stays. Raises InputError where there is no
    moment, or where they do not show the same parts.
    """
    if not moments:
        raise InputError("expected at least one moment to show, got none")
    parts = [(part.name, part.place) for part in moments[0].parts]
    if any([(part.name, part.place) for part in moment.parts] != parts for moment in moments):
        raise InputError("the moments of one film must show the same parts")
    colours = theme.palette(mode)
    pictures = [program_tiles(moment, mode=mode, height=height + _BELOW) for moment in moments]
    frames = []
    for number, (moment, picture) in enumerate(zip(moments, pictures, strict=True)):
        words = theme.label(
            mode,
            f"<b>{counted} {number}</b> · {moment.where}<br>{moment.words}",
            colour=colours.text,
            x=0,
            y=0,
            yshift=-12,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="top",
            align="left",
        )
        notes = [*picture.layout.annotations, words]
        # What a frame does not name stays as it was drawn first.
        cells = [go.Heatmap(z=_packed(trace.z)) for trace in picture.data]
        frames.append(
            go.Frame(data=cells, traces=[*range(len(cells))], name=str(number), layout={"annotations": notes})
        )
    for trace in pictures[0].data:
        # Words for every cell would be most of a notebook.
        trace.update(z=_packed(trace.z), customdata=None, hovertemplate=None, hoverinfo="skip")
    figure = go.Figure(pictures[0].data, layout=pictures[0].layout, frames=frames)
    figure.update_layout(annotations=frames[0].layout.annotations)
    turned = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    plays = {**turned, "fromcurrent": True, "frame": {"duration": milliseconds, "redraw": True}}
    font = {"size": 11, "color": colours.text}
    figure.update_layout(
        margin={"b": _BELOW},
        sliders=[
            {
                "steps": [
                    {"method": "animate", "label": frame.name, "args": [[frame.name], turned]}
                    for frame in frames
                ],
                "currentvalue": {"visible": False},
                "x": 0.16,
                "len": 0.84,
                "y": 0,
                "yanchor": "top",
                "pad": {"t": 46, "b": 0},
                "font": {"size": 10, "color": colours.muted},
                "tickcolor": colours.muted,
                "bgcolor": colours.weights,
                "bordercolor": colours.grid,
                "activebgcolor": colours.flash,
                "minorticklen": 0,
            }
        ],
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "x": 0,
                "xanchor": "left",
                "y": 0,
                "yanchor": "top",
                "pad": {"t": 48},
                "showactive": False,
                "font": font,
                "bgcolor": colours.surface,
                "bordercolor": colours.grid,
                "buttons": [
                    {"label": "▶", "method": "animate", "args": [None, plays]},
                    {"label": "❚❚", "method": "animate", "args": [[None], turned]},
                ],
            }
        ],
    )
    return figure


def _packed(cells: Any) -> np.ndarray[Any, Any]:
    """Numbers of cells as bytes, which plotly writes as one text and not a line for each."""
    return np.asarray(cells, dtype=np.int8)
