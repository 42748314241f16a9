"""How far a job is: words and a bar that keep themselves up to date, and run the page when there is something new."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import streamlit as st

_HTML = """
<div class="job">
  <div class="told"><span class="stage"></span><span class="time"></span></div>
  <div class="bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"><div></div></div>
</div>
"""
# A line for each, whatever they say: nothing below moves while a job goes on.
_CSS = """
.job { container-type: inline-size; }
.told { display: flex; flex-direction: column; font-size: 13px; line-height: 18px; }
.stage, .time { min-height: 18px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.time { flex-shrink: 0; font-size: 12px; opacity: 0.7; font-variant-numeric: tabular-nums; }
@container (min-width: 240px) { .told { flex-direction: row; justify-content: space-between; gap: 10px; } }
.bar { height: 6px; margin-top: 4px; border-radius: 3px; overflow: hidden; background: var(--st-border-color); }
.bar div { height: 100%; background: var(--st-primary-color); transform-origin: left; }
"""


@functools.cache
def _component() -> Any:
    return st.components.v2.component(
        "job_bar", html=_HTML, css=_CSS, js=Path(__file__).with_name("job_bar.js").read_text("utf-8")
    )


def job_bar(standing: dict[str, Any], *, follow: bool, key: str) -> None:
    """standing: of `app.job_words.standing`. follow: whether the page shows parts of the result as they come."""
    _component()(key=key, data={**standing, "follow": follow}, on_news_change=_nothing)


def _nothing() -> None:
    """The page is run, which is all."""
