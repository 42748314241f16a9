"""Where a job stands, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.words import duration

if TYPE_CHECKING:
    from flashsvd.jobs import JobStatus


def stage_words(now: JobStatus) -> str:
    """What a job does or waits for, since when, and for how long yet."""
    return f"{_stage(now)} · {_time(now)}"


def standing(now: JobStatus, parts: int) -> dict[str, Any]:
    """What a browser is told of a job. parts: how many of its result are there."""
    return {
        "id": now.id,
        "stage": _stage(now),
        "time": _time(now),
        "share": min(max(now.fraction, 0.0), 1.0),
        "parts": parts,
        "active": now.active,
    }


def _stage(now: JobStatus) -> str:
    if now.state == "queued" and now.place > 0:
        return f"Waiting: {now.place} ahead in the queue (see Runs)"
    if now.state == "starting":
        return "Starting the worker"
    return now.stage or now.state.capitalize()


def _time(now: JobStatus) -> str:
    left = "" if now.left is None or now.left < 1 else f", about {duration(now.left)} to go"
    return f"{now.seconds:.0f} s{left}"
