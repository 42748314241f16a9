"""Every program of one launch on the multiprocessor that it ran on, from its start to its end, as measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from flashsvd.figures import theme
from flashsvd.onchip.sm_numbers import SmNumbers, busy_over_time, lanes, numbers
from flashsvd.onchip.sm_trace import SmTrace

MOST_BARS = 3000
"""More programs than this are drawn as one picture of cells: a browser is slow with more shapes."""
_CELLS, _LEAST_CELLS, _MOST_CELLS = 700, 200, 400_000
"""Of the picture: across, across at least, and in all."""
_BUSY = [0.86, 1.0]
_BARS = [0.0, 0.80]
_DOWN = 0.92
"""Of a place's height that a bar fills."""


def sm_chart(trace: SmTrace, *, mode: str = "light", height: int = 330) -> go.Figure:
    """Time across in us; multiprocessors down, each with a row per program that it held at once. Colours follow the
    turns of a place: its first program, its second and so on. Above: programs that were resident. The time from the
    first idle multiprocessor to the end is shaded."""
    colours = theme.palette(mode)
    found = numbers(trace)
    lane, turn = lanes(trace)
    places = int(lane.max()) + 1
    if trace.programs <= MOST_BARS:
        drawn: Any = _bars(trace, lane, turn, places, mode)
    else:
        drawn = _cells(trace, lane, turn, places, mode)
    at, resident = busy_over_time(trace)
    figure = go.Figure(
        [
            drawn,
            go.Scatter(
                x=_light(at / 1e3),
                y=_light(resident),
                mode="lines",
                line={"width": 1.2, "color": colours.flash, "shape": "hvh"},
                fill="tozeroy",
                fillcolor=theme.faded(colours.flash, 0.18),
                yaxis="y2",
                hovertemplate="%{y:.0f} programs resident<br>at %{x:.1f} µs<extra></extra>",
            ),
        ]
    )
    end = found.makespan_ns / 1e3
    figure.update_layout(
        **theme.layout(mode, height),
        bargap=0,
        barmode="overlay",
        hovermode="closest",
        shapes=_tail(found, mode),
        annotations=_notes(found, places, mode),
        xaxis=theme.axis(mode, grid=True, range=[0, end * 1.002], title="µs since the first start", nticks=9),
        yaxis=theme.axis(
            mode,
            grid=False,
            domain=_BARS,
            range=[trace.sm_count - 0.5, -0.5],
            tickvals=_ticks(trace.sm_count),
            title="multiprocessor",
        ),
        yaxis2=theme.axis(
            mode,
            grid=False,
            domain=_BUSY,
            range=[0, max(float(resident.max()), 1.0) * 1.05],
            showticklabels=False,
            anchor="x",
        ),
    )
    figure.update_layout(margin={"l": 52, "r": 10, "t": 18, "b": 36})
    return figure


def _bars(trace: SmTrace, lane: NDArray[np.int64], turn: NDArray[np.int64], places: int, mode: str) -> go.Bar:
    duration = trace.end_ns - trace.start_ns
    return go.Bar(
        orientation="h",
        y=_light(trace.sm + (lane + 0.5) / places - 0.5),
        x=_light(duration / 1e3),
        base=_light(trace.start_ns / 1e3),
        width=_DOWN / places,
        marker={
            "color": _light(_shade(turn)),
            "colorscale": [[0.0, _ends(mode)[0]], [1.0, _ends(mode)[1]]],
            "cmin": 0,
            "cmax": 1,
            "line": {"width": 0},
        },
        customdata=np.stack([np.arange(trace.programs), trace.sm, turn + 1], axis=1).astype(np.int32),
        hovertemplate=(
            "<b>program %{customdata[0]:,}</b> on multiprocessor %{customdata[1]}<br>"
            "turn %{customdata[2]} of its place<br>"
            "starts at %{base:.2f} µs, runs %{x:.2f} µs<extra></extra>"
        ),
    )


def _cells(
    trace: SmTrace, lane: NDArray[np.int64], turn: NDArray[np.int64], places: int, mode: str
) -> go.Heatmap:
    """A picture of cells, each of the program that ran in its middle; 0 where none did."""
    end, rows = max(int(trace.end_ns.max()), 1), trace.sm_count * places
    across = min(_CELLS, max(_LEAST_CELLS, _MOST_CELLS // rows))
    middles = (np.arange(across) + 0.5) * end / across
    picture = np.zeros((rows, across), np.uint8)
    value = (1 + np.round(254 * _shade(turn))).astype(np.uint8)
    first, past = (np.searchsorted(middles, times, side="left") for times in (trace.start_ns, trace.end_ns))
    for program, row in enumerate(trace.sm * places + lane):
        picture[row, first[program] : past[program]] = value[program]
    low, high = _ends(mode)
    clear = theme.faded(low, 0)
    return go.Heatmap(
        z=picture,
        x0=middles[0] / 1e3,
        dx=end / across / 1e3,
        y0=-0.5 + 0.5 / places,
        dy=1 / places,
        zmin=0,
        zmax=255,
        colorscale=[[0.0, clear], [0.5 / 255, clear], [0.5 / 255, low], [1.0, high]],
        showscale=False,
        hovertemplate="multiprocessor %{y:.0f}<br>at %{x:.2f} µs<extra></extra>",
    )


def _shade(turn: NDArray[np.int64]) -> NDArray[np.float64]:
    """0 to 1 by turns; of many turns, neighbours are told apart as well."""
    most = max(int(turn.max()), 1)
    if most < 6:
        return turn / most
    return 0.6 * turn / most + 0.4 * (turn % 2)


def _light(values: NDArray[Any]) -> NDArray[np.float32]:
    """Half the bytes of a page, and still ten picoseconds of a hundred microseconds."""
    return values.astype(np.float32)


def _ends(mode: str) -> tuple[str, str]:
    """Of the palette's scale, without its end that meets the paper."""
    _, middle, high = theme.palette(mode).scale
    # On a dark page its light end glares where half of all programs have it.
    return middle, theme.faded(high, 0.7) if mode == "dark" else high


def _tail(found: SmNumbers, mode: str) -> list[dict[str, Any]]:
    if not found.tail_ns:
        return []
    end = found.makespan_ns / 1e3
    return [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": end - found.tail_ns / 1e3,
            "x1": end,
            "y0": 0,
            "y1": 1,
            "line": {"width": 0},
            "fillcolor": theme.faded(theme.palette(mode).mark, 0.13),
            "layer": "below",
        }
    ]


def _notes(found: SmNumbers, places: int, mode: str) -> list[dict[str, Any]]:
    colours = theme.palette(mode)
    above: dict[str, Any] = {"xref": "paper", "yref": "paper", "yanchor": "bottom", "y": 1.0}
    each = "" if places == 1 else f", {places} rows each"
    notes = [
        theme.label(
            mode, f"programs resident on {found.used} multiprocessors{each}", x=0, xanchor="left", **above
        )
    ]
    if found.tail_ns:
        words = f"tail {found.tail_ns / 1e3:.1f} µs"
        notes.append(theme.label(mode, words, colour=colours.mark, x=1, xanchor="right", **above))
    return notes


def _ticks(count: int) -> list[int]:
    each = next((size for size in (1, 2, 4, 8, 12, 16, 24, 32) if count / size <= 12), 64)
    return list(range(0, count, each))
