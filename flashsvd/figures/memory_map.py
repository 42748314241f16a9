"""Memory over a run: areas by category, or every allocation as a band, above a lane of what runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from flashsvd.errors import format_bytes
from flashsvd.figures import theme
from flashsvd.figures.memory_bands import MOST_BANDS, Bands, bands, within
from flashsvd.figures.memory_lane import Stretch, lane
from flashsvd.figures.sampling import envelope
from flashsvd.figures.timeline import layer_progress
from flashsvd.measure.allocations import CATEGORIES, Levels, allocations, levels

MAX_POINTS = 1400
"""Per trace of an area."""

Axis = Literal["op", "time"]
GIB = 2**30


@dataclass(frozen=True)
class Track:
    """One engine's run, seen as `flashsvd.measure.allocations` sees it."""

    engine: str
    timeline: pd.DataFrame
    found: pd.DataFrame
    levels: Levels
    layers: int

    @classmethod
    def of(cls, engine: str, timeline: pd.DataFrame, layers: int) -> Track:
        """Reads a timeline."""
        return cls(engine, timeline, allocations(timeline), levels(timeline), layers)

    @property
    def last(self) -> int:
        """The op after the last one."""
        return int(self.levels.x[-1]) if len(self.levels.x) else 1

    @property
    def peak_event(self) -> int:
        """The op at which the most is alive."""
        return int(self.levels.x[self.levels.peak]) if len(self.levels.x) else 0

    @property
    def peak_bytes(self) -> int:
        return int(self.levels.total.max()) if len(self.levels.x) else 0

    def place(self, event: float, axis: Axis) -> float:
        """Where an op lies on an axis."""
        if axis == "op" or not len(self.levels.x):
            return float(event)
        return float(np.interp(event, self.levels.x, self.levels.time_ms))

    def layer_window(self, layer: int) -> tuple[int, int]:
        """The ops of one layer; of the whole run where it has none."""
        born = self.found.loc[self.found["layer"] == layer, "born"]
        if born.empty:
            return 0, self.last
        after = self.found.loc[self.found["born"] > born.max(), "born"]
        return int(born.min()), int(after.min()) if len(after) else self.last


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
        found = _placed(within(track.found, low, high), axis)
        stacked = bands(found, left, right)
        top = _top(track, low, high)
        unit = _unit(max(top, outline[1].max() if outline else 0.0))
        _draw_bands(figure, track, found, stacked, mode, unit, selected, source)
    else:
        top = _top(track, low, high)
        unit = _unit(max(top, outline[1].max() if outline else 0.0))
        _draw_areas(figure, track, axis, left, right, mode, unit, source)
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
    _draw_lane(figure, track, axis, low, high, left, right, mode)
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


def _placed(found: pd.DataFrame, axis: Axis) -> pd.DataFrame:
    if axis == "op":
        return found.assign(x0=found["born"].astype(float), x1=found["freed"] + 1.0)
    return found.assign(x0=found["born_ms"], x1=found["freed_ms"])


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


def _draw_bands(
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


def _draw_areas(
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


def _draw_lane(
    figure: go.Figure, track: Track, axis: Axis, low: float, high: float, left: float, right: float, mode: str
) -> None:
    colours = theme.palette(mode)
    stretches = lane(_placed(within(track.found, low, high), axis), left, right)
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
