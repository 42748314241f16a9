"""A plotly figure in a page: nothing that zooms by accident, and a menu that saves it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app.components.figure_saver import figure_saver

_CONFIG = {"displaylogo": False, "displayModeBar": False, "scrollZoom": False, "doubleClick": False}


def chart(figure: go.Figure, *, key: str, name: str, data: pd.DataFrame | None = None, **select: Any) -> Any:
    """name: what saved files are called, and what a screen reader says. data: the numbers behind it, for saving.
    select: on_select and selection_mode of `st.plotly_chart`, whose value is returned."""
    with st.container(key=f"figure_{key}"):
        chosen = st.plotly_chart(figure, theme=None, key=key, alt=name, config=_CONFIG, **select)
        figure_saver(figure, chart=key, name=name, data=data)
    return chosen
