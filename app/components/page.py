"""What every page does around its own content."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app import session, work
from app.components import jobs, markup
from app.components.sidebar import sidebar
from app.evidence import Evidence, gather
from app.state import Settings


def page(render: Callable[[Settings, Evidence], None]) -> None:
    """Settles jobs, shows the controls and notices, then the page."""
    work.settle()
    settings = session.open_tab()
    evidence = gather(settings)
    sidebar(settings, evidence)
    if evidence.problem:
        markup.notice(evidence.problem, error=True)
    _notices()
    render(settings, evidence)
    # Last, so that the numbers are on screen before the worker starts to load.
    jobs.machine_chip()


def _notices() -> None:
    lines = session.notices()
    if not lines:
        return
    words, close = st.columns([92, 8], vertical_alignment="center", wrap=False)
    with words:
        for line in lines:
            markup.notice(line, error="cancelled" not in line)
    with close:
        st.button("Close", key="dismiss", type="tertiary", on_click=session.dismiss)
