"""What every tab runs: the header, then the page that its address names. `main.py` starts it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app.components import markup
from app.pages import views

st.set_page_config(
    page_title="FlashSVD Workbench", page_icon=str(Path(__file__).with_name("icon.svg")), layout="wide"
)
# A hidden chart, before the page is made: the browser fetches and parses its 4.7 MB of plotly meanwhile.
with st.container(key="preload"):
    st.html("<style>.st-key-preload { display: none }</style>")
    st.plotly_chart({"data": [{"y": [0]}], "layout": {}}, key="preload_chart")
markup.style()
markup.brand()
shown = st.navigation(
    [st.Page(view.path, title=view.title, default=view.name == "overview") for view in views()],
    position="top",
)
st.session_state["view"] = next(view.name for view in views() if view.title == shown.title)
shown.run()
