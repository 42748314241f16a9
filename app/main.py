"""`streamlit run app/main.py`: the FlashSVD workbench."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import streamlit as st

# Streamlit puts this file's own folder on the path, not the repository.
_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)

st.set_page_config(
    page_title="FlashSVD Workbench", page_icon=str(Path(__file__).with_name("icon.svg")), layout="wide"
)
# A hidden chart, before anything here imports pandas: the browser fetches and parses its 4.7 MB of plotly meanwhile.
with st.container(key="preload"):
    st.html("<style>.st-key-preload { display: none }</style>")
    # While another tab imports pandas, plotly finds half of it: the chart then comes with the page.
    with contextlib.suppress(AttributeError, ImportError):
        st.plotly_chart({"data": [{"y": [0]}], "layout": {}}, key="preload_chart")

from app.components import markup  # noqa: E402
from app.pages import views  # noqa: E402

markup.style()
markup.brand()
shown = st.navigation(
    [st.Page(view.path, title=view.title, default=view.name == "overview") for view in views()],
    position="top",
)
st.session_state["view"] = next(view.name for view in views() if view.title == shown.title)
shown.run()
