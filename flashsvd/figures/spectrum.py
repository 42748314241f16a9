"""Singular values of one unit: where the rank cuts, what it holds, where it stops paying."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from flashsvd.figures import theme
from flashsvd.models.shape import Slot
from flashsvd.ranks import Rank


def table(sigma: NDArray[np.float64], rank: Rank) -> pd.DataFrame:
    """The numbers behind `spectrum`: each singular value, the share of energy up to it, and whether it is kept.

    >>> table(np.array([2.0, 1.0]), 1).to_dict("list")
    {'index': [1, 2], 'singular_value': [2.0, 1.0], 'energy': [0.8, 1.0], 'kept': [True, False]}
    """
    index = np.arange(1, len(sigma) + 1)
    squares = np.square(sigma)
    return pd.DataFrame(
        {
            "index": index,
            "singular_value": sigma,
            "energy": np.cumsum(squares) / max(float(squares.sum()), 1e-300),
            "kept": index <= (len(sigma) if rank is None else rank),
        }
    )


def spectrum(
    sigma: NDArray[np.float64], rank: Rank, slot: Slot, *, mode: str = "light", height: int = 220
) -> go.Figure:
    """sigma [p], largest first. A rank of None is dense: everything is held, nothing is cut.

    Energy is the share of squared singular values at or above the cut.
    """
    colours = theme.palette(mode)
    count = len(sigma)
    index = np.arange(1, count + 1)
    squares = np.square(sigma)
    held = np.cumsum(squares) / max(float(squares.sum()), 1e-300)
    kept = count if rank is None else min(rank, count)
    colour = colours.dense if rank is None else colours.flash
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=index[:kept],
            y=sigma[:kept],
            fill="tozeroy",
            mode="lines",
            line={"width": 0},
            fillcolor=theme.faded(colour, 0.22),
            hoverinfo="skip",
            name="kept",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=index,
            y=sigma,
            customdata=100 * held,
            mode="lines",
            line={"width": 2, "color": colour},
            hovertemplate="σ%{x} = %{y:.3g}<br>%{customdata:.1f} % energy up to here<extra></extra>",
            name="singular values",
        )
    )
    top = float(sigma[0]) if count and sigma[0] > 0 else 1.0
    notes = []
    if rank is None:
        notes.append(
            theme.label(mode, "kept dense: nothing is cut", x=0.98, y=0.96, xref="paper", yref="paper")
        )
    else:
        figure.add_vline(x=rank, line={"width": 1.6, "color": colours.mark})
        side = {"xanchor": "right", "xshift": -5} if rank > 0.55 * count else {"xanchor": "left", "xshift": 5}
        at: dict[str, Any] = {"x": rank, "yanchor": "top", "bgcolor": colours.surface, "borderpad": 1, **side}
        notes.append(theme.label(mode, f"<b>rank {rank}</b>", colour=colours.mark, y=top * 1.1, **at))
        notes.append(theme.label(mode, f"{100 * held[kept - 1]:.1f} % energy", y=top * 0.98, **at))
    edge = slot.break_even
    if edge <= count:
        figure.add_vline(x=edge, line={"width": 1.2, "dash": "dash", "color": colours.dense})
        notes.append(
            theme.label(
                mode,
                f"break-even<br>{edge:.0f}",
                x=edge,
                y=top * 0.6,
                yanchor="middle",
                bgcolor=colours.surface,
                borderpad=1,
                xanchor="right" if edge > 0.5 * count else "left",
                xshift=-5 if edge > 0.5 * count else 5,
            )
        )
    figure.update_layout(
        **theme.layout(mode, height),
        annotations=notes,
        hovermode="closest",
        xaxis=theme.axis(mode, grid=False, title="singular value", range=[0, count + 0.5], nticks=6),
        yaxis=theme.axis(mode, grid=True, range=[0, top * 1.12], nticks=4),
    )
    figure.update_layout(margin={"l": 36, "t": 6})
    return figure
