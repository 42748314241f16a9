"""The rank as a staircase: warps on a multiprocessor above, the share of padding below."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.onchip.stairs import Stair


def staircase(
    steps: Sequence[Stair], *, rank: int | None = None, mode: str = "light", height: int = 190
) -> go.Figure:
    """Rank across; warps that share a multiprocessor, and percent of the arithmetic that falls on padding.

    rank: the one of the plan, marked on both.
    """
    colours = theme.palette(mode)
    shown = [step for step in steps if step.warps is not None]
    x = [step.rank for step in shown]
    hover = [
        f"rank {s.rank} pads to {s.padded}<br>{s.warps} of {s.max_warps} warps, limited by {s.limiter}<br>"
        f"{100 * s.padding:.0f} % of the arithmetic is padding"
        for s in shown
    ]
    common = {"x": x, "customdata": hover, "hovertemplate": "%{customdata}<extra></extra>", "mode": "lines"}
    figure = go.Figure(
        [
            go.Scatter(
                y=[s.warps for s in shown],
                line={"width": 2.2, "color": colours.flash, "shape": "hvh"},
                yaxis="y2",
                name="warps",
                **common,
            ),
            go.Scatter(
                y=[100 * s.padding for s in shown],
                line={"width": 1.4, "color": colours.mark},
                fill="tozeroy",
                fillcolor=theme.faded(colours.mark, 0.16),
                name="padding",
                **common,
            ),
        ]
    )
    here = next((step for step in shown if step.rank == rank), None)
    most = max((s.rank for s in steps), default=1)
    # Away from the plan's own label.
    corner = _RIGHT if here is not None and here.rank < most / 2 else _LEFT
    notes = [
        theme.label(mode, "warps per SM", colour=colours.flash, **corner, y=1.0),
        theme.label(mode, "padding, % of the arithmetic", colour=colours.mark, **corner, y=0.43),
    ]
    if here is not None:
        figure.add_vline(x=here.rank, line={"width": 1.2, "dash": "dot", "color": colours.dense})
        right = here.rank > 0.75 * max(x)
        for y, axis in ((here.warps, "y2"), (100 * here.padding, "y")):
            figure.add_trace(
                go.Scatter(
                    x=[here.rank],
                    y=[y],
                    yaxis=axis,
                    mode="markers",
                    marker={
                        "size": 9,
                        "color": colours.flash if axis == "y2" else colours.mark,
                        "line": {"width": 2, "color": colours.surface},
                    },
                    hoverinfo="skip",
                )
            )
        notes.append(
            theme.label(
                mode,
                f"<b>rank {here.rank}</b>",
                colour=colours.text,
                x=here.rank,
                y=1.0,
                yref="paper",
                yanchor="bottom",
                xanchor="right" if right else "left",
                xshift=-4 if right else 4,
            )
        )
    top = max((s.warps or 0 for s in shown), default=1)
    figure.update_layout(
        **theme.layout(mode, height),
        annotations=notes,
        hovermode="closest",
        xaxis=theme.axis(
            mode, grid=False, range=[0, most * 1.02], tickvals=_ticks(most), title="rank", anchor="y"
        ),
        yaxis=theme.axis(mode, grid=True, domain=[0.0, 0.42], rangemode="tozero", nticks=3),
        yaxis2=theme.axis(mode, grid=True, domain=[0.6, 1.0], range=[0, top * 1.18], nticks=4, anchor="x"),
    )
    figure.update_layout(margin={"l": 30, "r": 8, "t": 20, "b": 34})
    return figure


_PAPER = {"xref": "paper", "yref": "paper", "yanchor": "bottom"}
_LEFT, _RIGHT = {"x": 0, "xanchor": "left", **_PAPER}, {"x": 1, "xanchor": "right", **_PAPER}


def _ticks(most: int) -> list[int]:
    each = next((size for size in (16, 32, 64, 128, 256) if most / size <= 8), 512)
    return list(range(0, most + 1, each))
