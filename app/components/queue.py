"""The queue of all tabs: what runs, what waits, and Cancel for what no open tab waits for any more."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import streamlit as st

from app import services
from app.components import markup
from app.job_words import stage_words
from flashsvd.errors import FlashSVDError

if TYPE_CHECKING:
    from flashsvd.jobs import QueuedJob

_EVERY_SECONDS = 1.0
_MOST_ROWS = 6


def panel() -> None:
    """Every job that has not ended; nothing where there is none."""
    if _waiting():
        with st.container(key="panel_queue"):
            st.fragment(_watch, run_every=_EVERY_SECONDS)()


def _watch() -> None:
    waiting = _waiting()
    if not waiting:
        # The list below may have a run more.
        st.rerun()
    running = sum(job.status.state == "running" for job in waiting)
    markup.head("The queue of all tabs", f"{running} running, {len(waiting) - running} waiting")
    for job in waiting[:_MOST_ROWS]:
        words, stop = st.columns([86, 14], gap="small", vertical_alignment="center", wrap=False)
        with words:
            title = " · ".join(part for part in (job.title, job.model, stage_words(job.status)) if part)
            st.progress(min(max(job.status.fraction, 0.0), 1.0), text=title)
        with stop:
            st.button(
                "Cancel",
                key=f"queue_cancel_{job.status.id}",
                help="Also where another tab waits for it: that tab is told.",
                on_click=_cancel,
                args=(job.status.id,),
                width="stretch",
            )
    if len(waiting) > _MOST_ROWS:
        markup.muted(f"and {len(waiting) - _MOST_ROWS} more", "fs-foot")


def _waiting() -> list[QueuedJob]:
    try:
        return services.jobs().queue()
    except FlashSVDError:
        # What is wrong with the workers is said where a job is started.
        return []


def _cancel(job: str) -> None:
    with contextlib.suppress(FlashSVDError):
        services.jobs().cancel(job)
