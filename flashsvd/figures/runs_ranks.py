"""Where the plans of two kept runs differ, layer by layer and projection by projection."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.side_by_side import RankCell

_MOST_WORDS = 100
"""Cells that have room for their ranks."""

_LEAST_POINTS = 10.0
"""Differences below this are pale, whatever the largest one is."""


def runs_ranks(
    cells: Sequence[RankCell],
    layers: int,
    slots: Sequence[str],
    *,
    mode: str = "light",
    height: int = 200,
) -> go.Figure:
    """Columns are layers, rows projections. Colour is the share that B keeps minus the share that A keeps: blue where
    B keeps more, orange where it keeps less, empty where the two plans are equal.
    """
    colours = theme.palette(mode)
    found = {(cell.slot, cell.layer): cell for cell in cells}
    grid = [[found.get((slot, layer)) for layer in range(layers)] for slot in slots]
    most = max([_LEAST_POINTS, *(100 * abs(cell.difference) for cell in cells)])
    wide = layers <= 8 and layers * len(slots) <= _MOST_WORDS
    figure = go.Figure(
        go.Heatmap(
            z=[[None if cell is None else 100 * cell.difference for cell in row] for row in grid],
            text=[
                ["" if cell is None or not wide else f"{cell.a} → {cell.b}" for cell in row] for row in grid
            ],
            customdata=[["" if cell is None else _words(cell) for cell in row] for row in grid],
            texttemplate="%{text}",
            textfont={"size": 10.5, "color": colours.text},
            x=list(range(1, layers + 1)),
            y=list(range(len(slots))),
            zmin=-most,
            zmax=most,
            colorscale=[
                [0, theme.faded(colours.lowrank, 0.65)],
                [0.5, theme.faded(colours.weights, 0.55)],
                [1, theme.faded(colours.flash, 0.65)],
            ],
            showscale=False,
            xgap=2,
            ygap=2,
            hoverongaps=False,
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    step = max(1, layers // 12)
    figure.update_layout(
        **theme.layout(mode, height),
        xaxis=theme.axis(
            mode,
            grid=False,
            title="layer",
            range=[0.5, layers + 0.5],
            tickvals=list(range(1, layers + 1, step)),
        ),
        yaxis=theme.axis(
            mode,
            grid=False,
            range=[len(slots) - 0.5, -0.5],
            tickvals=list(range(len(slots))),
            ticktext=list(slots),
        ),
    )
    figure.update_layout(margin={"l": 44, "t": 4})
    return figure


def _words(cell: RankCell) -> str:
    return (
        f"L{cell.layer + 1}.{cell.slot}: A {cell.a}, B {cell.b}<br>"
        f"keeps {100 * cell.a_share:.1f} %, then {100 * cell.b_share:.1f} %"
    )
