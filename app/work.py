"""This tab's jobs: started by a button, settled at the top of every run of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from app import services, session
from flashsvd.errors import FlashSVDError
from flashsvd.jobs.kinds import kind_of
from flashsvd.results import Comparison

if TYPE_CHECKING:
    from flashsvd.jobs import JobStatus

FINISHED = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Active:
    """A job of this tab that has not been settled."""

    id: str
    kind: str
    title: str
    request: Any


def start(request: Any) -> None:
    """Submits a request of any kind (`flashsvd.jobs.kinds`); one of each kind per tab."""
    kind = kind_of(request)
    if kind.name in active():
        return
    session.dismiss()
    try:
        job = services.jobs().submit(request)
    except FlashSVDError as error:
        session.notify(f"{kind.title}: {error}")
        return
    active()[kind.name] = Active(job, kind.name, kind.title, request)


def start_compare() -> None:
    """Runs what the controls say at the moment of the click."""
    start(session.settings().compare_request())


def active() -> dict[str, Active]:
    """Unsettled jobs by kind."""
    found: dict[str, Active] = st.session_state.setdefault("active_jobs", {})
    return found


def status(job: Active) -> JobStatus | None:
    """Where a job stands; None where the service does not know it any more."""
    try:
        return services.jobs().status(job.id)
    except FlashSVDError:
        return None


def cancel(kind: str) -> None:
    """Asks the worker to stop; the page settles it when it has."""
    job = active().get(kind)
    if job is None:
        return
    try:
        services.jobs().cancel(job.id)
    except FlashSVDError as error:
        session.notify(f"{job.title}: {error}")


def settle() -> None:
    """Takes in what has ended. A failure is one line, and the numbers on screen stay."""
    for kind, job in list(active().items()):
        try:
            now = services.jobs().status(job.id)
            if now.state not in FINISHED:
                continue
            del active()[kind]
            if now.state == "done":
                _take(services.jobs().result(job.id), job)
            elif now.state == "failed":
                session.notify(f"{job.title} failed: {now.error or 'the worker gave no reason'}")
            else:
                session.notify(f"{job.title} cancelled. The numbers on screen are the ones from before.")
        except FlashSVDError as error:
            active().pop(kind, None)
            session.notify(f"{job.title} failed: {error}")


def _take(result: Any, job: Active) -> None:
    session.remember(result, job.request)
    problem = services.jobs().status(job.id).warning
    if problem:
        session.notify(f"The run is on screen but was not saved: {problem}")


def early_comparison() -> Comparison | None:
    """What the run of this tab has measured, while its scores are still to come; None before and after."""
    job = active().get("compare")
    found = [part for part in partial(job) if isinstance(part, Comparison)] if job else []
    return found[-1] if found else None


def partial(job: Active) -> tuple[Any, ...]:
    """What is there already of a job's result, such as points of a curve."""
    try:
        return tuple(services.jobs().partial(job.id))
    except FlashSVDError:
        return ()
