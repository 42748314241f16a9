"""A figure for the back row: the same picture with everything that is counted in pixels larger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

_PIXELS = frozenset(
    [
        "size",
        "height",
        "xshift",
        "yshift",
        "l",
        "r",
        "t",
        "b",
        "pad",
        "cornerradius",
        "standoff",
        "ticklen",
        "borderpad",
        "borderwidth",
        "arrowwidth",
        "xgap",
        "ygap",
    ]
)
_OF_LINES = ("line", "outline")


def larger(figure: go.Figure, factor: float) -> go.Figure:
    """Type, margins, markers, lines and the height times a factor; data stay where they are. The figure given is not
    changed.

    >>> big = larger(go.Figure(layout={"height": 200, "font": {"size": 12}}), 1.5)
    >>> big.layout.height, big.layout.font.size
    (300.0, 18.0)
    """
    return go.Figure(_scaled(figure.to_dict(), "", "", factor))


def _scaled(value: Any, name: str, parent: str, factor: float) -> Any:
    if isinstance(value, Mapping):
        return {key: _scaled(part, key, name, factor) for key, part in value.items()}
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return [_scaled(part, name, parent, factor) for part in value]
    if name not in _PIXELS and not (name == "width" and parent in _OF_LINES):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return factor * value
    # Markers may have a size each.
    return value if isinstance(value, str) or value is None else [factor * float(one) for one in value]
