"""A job's panel: stage, progress, queue place, Cancel. Polls only while the job is active."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import streamlit as st

from app import services, work
from app.components import markup
from app.words import duration
from flashsvd.errors import FlashSVDError

if TYPE_CHECKING:
    from flashsvd.jobs import JobStatus

_EVERY_SECONDS = 1.0
_MACHINE_SECONDS = 3.0


def panel(kind: str, *, low: bool = False, place: str = "") -> None:
    """The panel of this tab's job of one kind; nothing where there is none. low: as high as a button. place: what
    tells a second panel of the same job on one page from the first."""
    if kind in work.active():
        st.fragment(_watch, run_every=_EVERY_SECONDS)(kind, low, place)


def _watch(kind: str, low: bool, place: str) -> None:
    job = work.active().get(kind)
    now = work.status(job) if job else None
    if job is None or now is None or now.state in work.FINISHED:
        # The page settles the job at its top and draws what came out.
        st.rerun()
    if kind == "compare" and (early := work.early_comparison()) is not None:
        # Memory and latency are there, then a score more: the page shows what there is while the run goes on.
        seen = (job.id, sum(run.metric is not None for run in early.runs))
        if st.session_state.get("early_shown") != seen:
            st.session_state["early_shown"] = seen
            st.rerun()
    bar, stop = st.columns([72, 28], gap="small", wrap=False) if low else (st.container(), st.container())
    bar.progress(min(max(now.fraction, 0.0), 1.0), text=stage_words(now))
    stop.button("Cancel", key=f"cancel_{kind}{place}", on_click=work.cancel, args=(kind,), width="stretch")


def stage_words(now: JobStatus) -> str:
    """What a job does or waits for, since when, and for how long yet."""
    if now.state == "queued" and now.place > 0:
        words = f"Waiting: {now.place} ahead in the queue (see Runs)"
    elif now.state == "starting":
        words = "Starting the worker"
    else:
        words = now.stage or now.state.capitalize()
    left = "" if now.left is None or now.left < 1 else f", about {duration(now.left)} to go"
    return f"{words} · {now.seconds:.0f} s{left}"


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


def accelerator() -> str | None:
    """The GPU that a job runs on; None without one, where some machines have none, and before the header knows."""
    found: tuple[str | None, ...] = st.session_state.get("accelerators", ())
    return found[0] if found and all(found) else None


def _await_machine(first_look: bool) -> None:
    markup.muted("starting the worker", "fs-chip")
    looks = st.session_state["chip_looks"] = st.session_state.get("chip_looks", 0) + 1
    if not (first_look and looks == 1) and _machine() is not None:
        st.rerun()


def _machine() -> str | None:
    """The machines that jobs run on, and the address of a scheduler that is not our own."""
    try:
        service = services.jobs()
        machines = service.machines()
    except FlashSVDError:
        return None
    if not machines:
        return None
    st.session_state["accelerators"] = tuple(machine.accelerator for machine in machines)
    labels = Counter(machine.label for machine in machines)
    words = ", ".join(label if count == 1 else f"{count} x {label}" for label, count in labels.items())
    return words if service.address is None else f"{words} at {service.address}"
