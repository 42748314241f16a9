"""A plotly figure in a page: no logo, a modebar that only saves."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

_CONFIG = {
    "displaylogo": False,
    "displayModeBar": "hover",
    "modeBarButtons": [["toImage"]],
    "toImageButtonOptions": {"format": "svg"},
    "scrollZoom": False,
    "doubleClick": False,
}


def chart(figure: go.Figure, *, key: str, name: str, data: pd.DataFrame | None = None) -> None:
    """name: what the saved file is called, and what a screen reader says. data: the numbers behind it, for saving."""
    options = {**_CONFIG["toImageButtonOptions"], "filename": name.lower().replace(" ", "-")}  # type: ignore[dict-item]
    st.plotly_chart(
        figure, theme=None, key=key, alt=name, config={**_CONFIG, "toImageButtonOptions": options}
    )
