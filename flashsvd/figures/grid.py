"""The rank of every layer, projection and head as one picture."""

from __future__ import annotations

import plotly.graph_objects as go

from flashsvd.figures import theme
from flashsvd.models.shape import Slot
from flashsvd.ranks import Rank, RankPlan

_GAP, _SINGLE = 0.9, 2.0
"""Widths, in cells: between two projections, and of a projection without heads."""


def rank_grid(
    plan: RankPlan,
    *,
    chosen: tuple[int, str, int] | None = None,
    mode: str = "light",
    row_px: int = 20,
) -> go.Figure:
    """Rows are layers, columns heads, one strip per projection. Colour is rank over break-even; a stroke is dense.

    chosen: (layer, slot, unit) to outline.
    """
    colours = theme.palette(mode)
    shape = plan.shape
    layers = len(shape.layers)
    widths = {name: _columns(shape.layers[0], name) for name in shape.slot_names}
    total = sum(width for _, width in widths.values()) + _GAP * (len(widths) - 1)
    figure = go.Figure()
    notes, left = [], 0.0
    for number, (name, (units, width)) in enumerate(widths.items(), start=1):
        right = left + width / total
        suffix = "" if number == 1 else str(number)
        cells = [_row(plan, layer, name, units) for layer in range(layers)]
        figure.add_trace(
            go.Heatmap(
                z=[[1.0 if rank is None else rank / slot.break_even for slot, rank in row] for row in cells],
                text=[["╱" if rank is None else "" for _, rank in row] for row in cells],
                customdata=[
                    [_words(layer, slot, unit, rank) for unit, (slot, rank) in enumerate(row)]
                    for layer, row in enumerate(cells)
                ],
                texttemplate="%{text}",
                textfont={"size": 12, "color": colours.surface},
                x=list(range(1, units + 1)),
                y=list(range(1, layers + 1)),
                zmin=0,
                zmax=1,
                colorscale=[[0, colours.scale[0]], [0.5, colours.scale[1]], [1, colours.scale[2]]],
                showscale=False,
                xgap=2,
                ygap=2,
                xaxis=f"x{suffix}",
                yaxis="y",
                hovertemplate="%{customdata}<extra></extra>",
                name=name,
            )
        )
        figure.update_layout(
            {
                f"xaxis{suffix}": theme.axis(
                    mode, grid=False, domain=[left, min(right, 1.0)], showticklabels=False
                )
            }
        )
        heads = f"<b>{name}</b>" + ("  heads →" if units > 1 else "")
        notes.append(
            theme.label(
                mode, heads, x=left, y=1.0, xref="paper", yref="paper", xanchor="left", yanchor="bottom"
            )
        )
        if chosen is not None and chosen[1] == name:
            figure.add_shape(
                type="rect",
                xref=f"x{suffix}",
                yref="y",
                x0=chosen[2] + 0.5,
                x1=chosen[2] + 1.5,
                y0=chosen[0] + 0.5,
                y1=chosen[0] + 1.5,
                line={"width": 2, "color": colours.mark},
            )
        left = right + _GAP / total
    figure.update_layout(
        **theme.layout(mode, layers * row_px + 24),
        annotations=notes,
        yaxis=theme.axis(
            mode, grid=False, autorange="reversed", tickvals=list(range(1, layers + 1)), nticks=layers
        ),
    )
    figure.update_layout(margin={"l": 26, "r": 2, "t": 22, "b": 2})
    return figure


def _columns(slots: tuple[Slot, ...], name: str) -> tuple[int, float]:
    units = next((slot.units for slot in slots if slot.name == name), 1)
    return units, float(units) if units > 1 else _SINGLE


def _row(plan: RankPlan, layer: int, name: str, units: int) -> list[tuple[Slot, Rank]]:
    slot = plan.shape.slot(layer, name)
    return [(slot, rank) for rank in plan.get(layer, name)][:units]


def _words(layer: int, slot: Slot, unit: int, rank: Rank) -> str:
    place = f"L{layer + 1}.{slot.name}" + (f".h{unit + 1}" if slot.units > 1 else "")
    kept = "dense" if rank is None else f"rank {rank}, {100 * rank / slot.break_even:.0f} % of break-even"
    return f"{place}: {kept}<br>full rank {slot.full_rank}, break-even {slot.break_even:.1f}"
