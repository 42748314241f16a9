"""A job's panel: stage, progress, queue place, Cancel; and the machine's name in the header."""

from __future__ import annotations

from collections import Counter

import streamlit as st

from app import services, work
from app.components import markup
from app.components.job_bar import job_bar
from app.job_words import standing
from flashsvd.errors import FlashSVDError

_MACHINE_SECONDS = 3.0


def panel(kind: str, *, low: bool = False, place: str = "") -> None:
    """The panel of this tab's job of one kind; nothing where there is none. low: as high as a button. place: what
    tells a second panel of the same job on one page from the first."""
    job = work.active().get(kind)
    now = work.status(job) if job else None
    if job is None or now is None:
        return
    bar, stop = st.columns([72, 28], gap="small", wrap=False) if low else (st.container(), st.container())
    with bar:
        # Of a live run, memory and latency are there before the score: the page shows what there is.
        parts = len(work.partial(job))
        job_bar(standing(now, parts), follow=kind == "compare", key=f"job_bar_{kind}{place}")
    stop.button("Cancel", key=f"cancel_{kind}{place}", on_click=work.cancel, args=(kind,), width="stretch")


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
