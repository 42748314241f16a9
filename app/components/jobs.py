"""A job's panel: stage, progress, queue place, Cancel. Polls only while the job is active."""

from __future__ import annotations

import streamlit as st

from app import services, work
from app.components import markup
from flashsvd.errors import FlashSVDError

_EVERY_SECONDS = 0.5
_MACHINE_SECONDS = 3.0


def panel(kind: str) -> None:
    """The panel of this tab's job of one kind; nothing where there is none."""
    if kind in work.active():
        st.fragment(_watch, run_every=_EVERY_SECONDS)(kind)


def _watch(kind: str) -> None:
    job = work.active().get(kind)
    now = work.status(job) if job else None
    if job is None or now is None or now.state in work.FINISHED:
        # The page settles the job at its top and draws what came out.
        st.rerun()
    if now.state == "queued" and now.place > 0:
        words = f"Waiting: {now.place} ahead in the queue"
    elif now.state == "starting":
        words = "Starting the worker"
    else:
        words = now.stage or now.state.capitalize()
    st.progress(min(max(now.fraction, 0.0), 1.0), text=f"{words} · {now.seconds:.0f} s")
    st.button("Cancel", key=f"cancel_{kind}", on_click=work.cancel, args=(kind,), width="stretch")


def machine_chip() -> None:
    """The machine's name and whether it is busy, in the header."""
    # The worker starts at this tab's second look, seconds later: loading torch would slow the first view.
    first_look = "looked" not in st.session_state
    st.session_state["looked"] = True
    machine = None if first_look and not work.active() else _machine()
    with st.container(key="machine"):
        if machine is None:
            st.fragment(_await_machine, run_every=_MACHINE_SECONDS)(first_look)
        else:
            markup.muted(f"{machine} · {'busy' if work.active() else 'idle'}", "fs-chip")


def _await_machine(first_look: bool) -> None:
    markup.muted("starting the worker", "fs-chip")
    looks = st.session_state["chip_looks"] = st.session_state.get("chip_looks", 0) + 1
    if not (first_look and looks == 1) and _machine() is not None:
        st.rerun()


def _machine() -> str | None:
    try:
        machine = services.jobs().machine()
    except FlashSVDError:
        return None
    return None if machine is None else machine.label
