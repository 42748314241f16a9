"""Saving a figure: a picture by the browser, its numbers and a page that works offline by the server, when asked."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

_BUTTONS = '<div class="row"><button data-kind="png">PNG</button><button data-kind="svg">SVG</button></div>'
_CSS = """
.row { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; width: 100%; }
button {
  padding: 6px 0; font: inherit; font-size: 13px; cursor: pointer; border-radius: 8px;
  color: var(--st-text-color); background: transparent; border: 1px solid var(--st-border-color);
}
button:hover, button:focus-visible { border-color: var(--st-primary-color); color: var(--st-primary-color); }
"""


@functools.cache
def _component() -> Any:
    return st.components.v2.component(
        "figure_saver",
        html=_BUTTONS,
        css=_CSS,
        js=Path(__file__).with_name("figure_saver.js").read_text("utf-8"),
    )


def figure_saver(figure: go.Figure, *, chart: str, name: str, data: pd.DataFrame | None) -> None:
    """A small menu over a chart. chart: its key; name: of the files; data: the numbers behind it, or None."""
    file = name.lower().replace(" ", "-")
    with (
        st.container(key=f"save_{chart}"),
        st.popover("⤓", help=f"Save “{name}”", type="tertiary", key=f"savemenu_{chart}"),
    ):
        _component()(key=f"pictures_{chart}", data={"chart": chart, "file": file})
        if data is not None:
            st.download_button(
                "CSV",
                data=lambda: data.to_csv(index=False),
                file_name=f"{file}.csv",
                mime="text/csv",
                key=f"csv_{chart}",
                on_click="ignore",
                width="stretch",
            )
        st.download_button(
            "HTML, works offline",
            data=lambda: figure.to_html(include_plotlyjs=True, full_html=True),
            file_name=f"{file}.html",
            mime="text/html",
            key=f"html_{chart}",
            on_click="ignore",
            width="stretch",
        )
