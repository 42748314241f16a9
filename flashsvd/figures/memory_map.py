"""Memory over a run: areas by category, or every allocation as a band, above a lane of what runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from flashsvd.errors import format_bytes
from flashsvd.figures import theme
from flashsvd.figures.memory_bands import MOST_BANDS, Bands, bands, within
from flashsvd.figures.memory_lane_drawn import draw_lane
from flashsvd.figures.memory_shapes import MAX_POINTS, draw_areas, draw_bands
from flashsvd.figures.memory_track import Axis, Track, placed
from flashsvd.figures.sampling import envelope
from flashsvd.figures.timeline import layer_progress

GIB = 2**30


def drawn_as_bands(track: Track, low: float, high: float) -> bool:
    """Whether a window's allocations are few enough to be drawn one by one."""
    return len(within(track.found, low, high)) <= MOST_BANDS


def memory_map(
    track: Track,
    window: tuple[float, float],
    *,
    axis: Axis = "op",
    ghost: Track | None = None,
    selected: int | None = None,
    moment: int | None = None,
    mode: str = "light",
    height: int = 380,
    source: str = "",
) -> tuple[go.Figure, Bands | None]:
    """The picture of a window of ops, and its bands where it has them.

    ghost: another engine's run, its total dashed and laid over this one's layer by layer. selected: an allocation (row
    of `track.found`); moment: an op; both are marked. source: for the hover text. Points carry customdata: "a" and the
    allocation's row, or "e" and the op.
    """
    low, high = window
    left, right = track.place(low, axis), track.place(high, axis)
    outline = _ghost(track, ghost, axis, left, right) if ghost is not None else None
    stacked = None
    figure = go.Figure()
    if drawn_as_bands(track, low, high):
        found = placed(within(track.found, low, high), axis)
        stacked = bands(found, left, right)
        top = _top(track, low, high)
        unit = _unit(max(top, outline[1].max() if outline else 0.0))
        draw_bands(figure, track, found, stacked, mode, unit, selected, source)
    else:
        top = _top(track, low, high)
        unit = _unit(max(top, outline[1].max() if outline else 0.0))
        draw_areas(figure, track, axis, left, right, mode, unit, source)
    if ghost is not None and outline is not None:
        figure.add_trace(
            go.Scatter(
                x=outline[0],
                y=outline[1] / unit[0],
                mode="lines",
                line={
                    "width": 1.3,
                    "shape": "hv",
                    "dash": "4px,3px",
                    "color": theme.engine_colour(ghost.engine, mode),
                },
                hoverinfo="skip",
                name=ghost.engine,
            )
        )
    whole = high - low >= 0.98 * track.last
    ceiling = max(top, outline[1].max() if outline is not None and len(outline[1]) and whole else 0.0) or 1.0
    draw_lane(figure, track, axis, low, high, left, right, mode)
    figure.update_layout(
        **theme.layout(mode, height) | {"margin": {"l": 46, "r": 10, "t": 20, "b": 34}},
        hovermode="closest",
        hoverdistance=40,
        clickmode="event+select",
        shapes=_moment(track, moment, axis, mode),
        annotations=_notes(track, ghost, outline, axis, low, high, unit, mode, whole),
        xaxis=theme.axis(
            mode,
            grid=False,
            title="op" if axis == "op" else "ms since the forward began",
            range=[left, right],
            anchor="y2",
        ),
        yaxis=theme.axis(mode, grid=True, range=[0, ceiling / unit[0] * 1.1], domain=[0.13, 1.0], nticks=6),
        yaxis2=theme.axis(mode, grid=False, range=[0, 1], domain=[0.0, 0.085], showticklabels=False),
    )
    return figure, stacked


def _unit(top: float) -> tuple[float, str]:
    return (float(GIB), "GiB") if top >= 4 * GIB else (float(theme.MIB), "MiB")


def unit_of(track: Track, ghost: Track | None = None) -> str:
    """What the picture of a whole run counts in."""
    return _unit(float(max(track.peak_bytes, ghost.peak_bytes if ghost else 0)))[1]


def _top(track: Track, low: float, high: float) -> float:
    inside = (track.levels.x >= low) & (track.levels.x <= high)
    return float(track.levels.total[inside].max()) if inside.any() else 0.0


def _ghost(
    track: Track, ghost: Track, axis: Axis, left: float, right: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The other run's total over this one's axis, laid layer on layer."""
    if not len(ghost.levels.x) or not len(track.levels.x):
        return None
    mine, other = (layer_progress(run.timeline, run.layers) for run in (track, ghost))
    events = track.timeline["event"].to_numpy(dtype=float)
    progress = np.interp(ghost.levels.x, ghost.timeline["event"].to_numpy(dtype=float), other)
    x = np.interp(progress, mine, events)
    if axis == "time":
        x = np.interp(x, track.levels.x, track.levels.time_ms)
    x, y = np.maximum.accumulate(x), ghost.levels.total
    inside = np.flatnonzero((x >= left) & (x <= right))
    if not len(inside):
        return None
    keep = inside[envelope(y[inside], MAX_POINTS)]
    return x[keep], y[keep]


def _moment(track: Track, moment: int | None, axis: Axis, mode: str) -> list[dict[str, Any]]:
    if moment is None:
        return []
    at = track.place(moment + 0.5, axis)
    line = {"width": 1.2, "color": theme.palette(mode).text, "dash": "1px,3px"}
    return [{"type": "line", "x0": at, "x1": at, "y0": 0.13, "y1": 1, "yref": "paper", "line": line}]


def _notes(
    track: Track,
    ghost: Track | None,
    outline: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
    axis: Axis,
    low: float,
    high: float,
    unit: tuple[float, str],
    mode: str,
    whole: bool,
) -> list[dict[str, Any]]:
    notes = []
    if low <= track.peak_event <= high and track.peak_bytes:
        notes.append(
            _note(
                f"{track.engine} peak {format_bytes(track.peak_bytes)}",
                track.place(track.peak_event, axis),
                track.peak_bytes / unit[0],
                (track.place(low, axis) + track.place(high, axis)) / 2,
                theme.palette(mode).text,
                mode,
            )
        )
    if ghost is not None and outline is not None and whole:
        at = int(np.argmax(outline[1]))
        if outline[1][at] > 1.15 * track.peak_bytes:
            notes.append(
                _note(
                    f"{ghost.engine} peak {format_bytes(ghost.peak_bytes)}",
                    float(outline[0][at]),
                    float(outline[1][at]) / unit[0],
                    (track.place(low, axis) + track.place(high, axis)) / 2,
                    theme.engine_colour(ghost.engine, mode),
                    mode,
                )
            )
    return notes


def _note(text: str, x: float, y: float, middle: float, colour: str, mode: str) -> dict[str, Any]:
    return theme.label(
        mode,
        f"<b>{text}</b>",
        colour=colour,
        x=x,
        y=y,
        xanchor="left" if x <= middle else "right",
        yanchor="bottom",
        yshift=2,
        bgcolor=theme.palette(mode).surface,
        borderpad=1,
    )
