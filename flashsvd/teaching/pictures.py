"""How a notebook shows things, so that it reads well in JupyterLab, on a code host's page and on paper."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flashsvd.figures import theme

if TYPE_CHECKING:
    import ipywidgets
    import plotly.graph_objects as go
    import torch
    from IPython.display import DisplayHandle

PLOTLY = "application/vnd.plotly.v1+json"
_PLOTLY_HEIGHT = 360
"""Pixels of a figure in JupyterLab that names no height."""


def show(figure: go.Figure, alt: str) -> None:
    """A figure in the cell's output. `alt` says in words what there is to see."""
    shown(bundle(figure, alt))


def shown(data: dict[str, Any]) -> DisplayHandle | None:
    """Puts out something by its types; the handle draws it anew. None, and nothing put out, outside a notebook."""
    if "IPython" not in sys.modules:
        return None
    from IPython.core.getipython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return None
    handle: DisplayHandle = display(data, raw=True, display_id=True)
    return handle


def bundle(figure: go.Figure, alt: str) -> dict[str, Any]:
    """A figure as JupyterLab's plotly draws it, on opaque paper: its ink is dark whatever the theme."""
    colours = theme.palette("light")
    drawn = json.loads(figure.to_json())
    drawn["layout"] |= {"paper_bgcolor": colours.surface, "plot_bgcolor": colours.surface}
    drawn["config"] = {"displayModeBar": False, "responsive": True}
    return {PLOTLY: drawn, "text/plain": alt}


def redraw(handle: DisplayHandle, figure: go.Figure, alt: str) -> None:
    """Draws a figure in the place of one that was shown.

    JupyterLab's plotly keeps a figure once it is drawn, so an empty box of the same size and colour comes in between.
    """
    drawn = bundle(figure, alt)
    layout = drawn[PLOTLY]["layout"]
    height, colour = layout.get("height", _PLOTLY_HEIGHT), layout["paper_bgcolor"]
    box = f"<div style='height:{height}px;background:{colour}'></div>"
    handle.update({"text/html": box, "text/plain": alt}, raw=True)
    handle.update(drawn, raw=True)


def image(values: torch.Tensor, title: str, *, limit: float | None = None, height: int = 260) -> go.Figure:
    """A matrix [m, n] as a picture: blue below zero, orange above, white at it. `limit` is the end of the colours."""
    import plotly.graph_objects as go

    cells = values.detach().float().cpu()
    end = float(cells.abs().max()) if limit is None else limit
    colours = theme.palette("light")
    figure = go.Figure(
        go.Heatmap(
            z=[[float(f"{value:.3g}") for value in row] for row in cells.tolist()],
            zmin=-end,
            zmax=end,
            colorscale=[[0, colours.flash], [0.5, colours.surface], [1, colours.mark]],
            colorbar={"thickness": 8, "outlinewidth": 0},
            hovertemplate="row %{y}, column %{x}: %{z:.3g}<extra></extra>",
        )
    )
    figure.update_layout(
        **theme.layout("light", height),
        title={"text": title, "font": {"size": 12, "color": colours.text}, "x": 0.02, "y": 0.98},
        xaxis=theme.axis("light", grid=False),
        yaxis=theme.axis("light", grid=False, autorange="reversed"),
    )
    figure.update_layout(margin={"t": 30})
    return figure


def framed(kind: str, question: str, folded: str = "") -> str:
    """A box in the colours of any theme, with an answer to unfold."""
    colour = theme.palette("light").flash
    answer = (
        f"<details style='margin-top:.4em'><summary>Guess first, then look</summary>{folded}</details>"
        if folded
        else ""
    )
    return (
        f"<div style='border-left:3px solid {colour};background:{theme.faded(colour, 0.08)};color:inherit;"
        f"padding:.5em .8em;line-height:1.5;max-width:60em;white-space:normal'><b>{kind}.</b> {question}{answer}</div>"
    )


def widget_or(make: Callable[[], ipywidgets.Widget], fallback: str) -> None:
    """A widget in a live notebook, and HTML where the notebook is only read."""
    if "IPython" not in sys.modules:
        return
    from IPython.core.getipython import get_ipython

    if get_ipython() is not None:
        shown({**make()._repr_mimebundle_(), "text/html": fallback})
