"""What a classifier says of one text, dense and compressed, as bars."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from flashsvd.figures import theme


def class_bars(
    classes: Sequence[str],
    dense: Sequence[float],
    compressed: Sequence[float],
    *,
    mode: str = "light",
    height: int = 330,
    source: str = "",
) -> go.Figure:
    """Two bars a class, the first class on top, and beside them the change in points.

    Args:
        classes: names, as they are to be drawn.
        dense, compressed: probabilities of these classes, from 0 to 1.
        source: where the numbers come from, for the hover text.
    """
    colours = theme.palette(mode)
    rows = list(range(len(classes)))
    figure = go.Figure()
    for name, shares in (("dense", dense), ("flash", compressed)):
        words = "dense" if name == "dense" else "compressed"
        figure.add_trace(
            go.Bar(
                y=rows,
                x=[100 * share for share in shares],
                orientation="h",
                name=words,
                marker={"color": theme.engine_colour(name, mode), "cornerradius": 3},
                customdata=[_escaped(name) for name in classes],
                hovertemplate="<b>%{customdata}</b><br>"
                + f"{words} %{{x:.2f}} %"
                + (f"<br>{source}" if source else "")
                + "<extra></extra>",
            )
        )
    notes = [
        theme.label(
            mode,
            _change(q - p),
            colour=colours.text,
            x=100 * max(p, q),
            y=row,
            xanchor="left",
            xshift=8,
            yanchor="middle",
        )
        for row, (p, q) in enumerate(zip(dense, compressed, strict=True))
    ]
    figure.update_layout(
        **theme.layout(mode, height),
        annotations=notes,
        barmode="group",
        bargap=0.34,
        bargroupgap=0.06,
        hovermode="closest",
        xaxis=theme.axis(
            mode, grid=True, title="probability %", range=[0, 114], tickvals=[0, 25, 50, 75, 100]
        ),
        yaxis=theme.axis(
            mode,
            grid=False,
            tickvals=rows,
            ticktext=[_short(name) for name in classes],
            range=[len(rows) - 0.5, -0.5],
            automargin=True,
            tickfont={"size": 12.5, "color": colours.text},
        ),
    )
    return figure


def _change(difference: float) -> str:
    """In points, nothing where rounding hides it.

    >>> _change(-0.051), _change(0.0004)
    ('−5.1', '')
    """
    points = round(100 * difference, 1)
    return "" if points == 0 else f"{'+' if points > 0 else '−'}{abs(points):.1f}"


def _short(name: str, most: int = 22) -> str:
    """A class's name as a label. Plotly reads tags in words, so they are taken apart."""
    cut = name if len(name) <= most else name[: most - 1] + "…"
    return _escaped(cut)


def _escaped(name: str) -> str:
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
