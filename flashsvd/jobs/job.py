"""One job as the service sees it, and what it tells of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flashsvd.jobs.kind import Kind
from flashsvd.jobs.pieces import Pieces
from flashsvd.jobs.status import JobStatus, State

_LEAST_SHARE = 0.05
"""Of a job's progress, before which it says nothing of how long the rest takes."""


@dataclass
class Job:
    """Changed by the service alone, under its lock. Times are of `time.monotonic`."""

    id: str
    kind: Kind
    request: Any
    created: float = field(default_factory=time.monotonic)
    started: float | None = None
    ended: float | None = None
    stage: str = "Waiting"
    share: float = 0.0
    state: State = "starting"
    error: str | None = None
    result: Any = None
    parts: list[Any] = field(default_factory=list)
    pieces: Pieces = field(default_factory=Pieces)
    cancel_at: float | None = None
    over: str | None = None
    sent_again: bool = False
    warning: str | None = None

    @property
    def active(self) -> bool:
        return self.state in ("starting", "queued", "running")


def status_of(job: Job, jobs: Iterable[Job], typical: Mapping[str, float]) -> JobStatus:
    """jobs: all of the queue. typical: seconds that the last job of a kind took, by its name."""
    before = [other for other in jobs if other.active and other.created < job.created]
    seconds = (job.ended or time.monotonic()) - (job.started or job.created)
    return JobStatus(
        job.id,
        job.kind.name,
        job.state,
        job.stage,
        job.share,
        len(before),
        job.error,
        seconds,
        job.warning,
        _left(job, before, typical),
    )


def _left(job: Job, before: list[Job], typical: Mapping[str, float]) -> float | None:
    """Seconds until a job is done, with those before it: by its progress, or as long as the last of its kind."""
    if not job.active:
        return None
    parts = [_alone(one, typical) for one in (*before, job)]
    return None if None in parts else sum(part for part in parts if part is not None)


def _alone(job: Job, typical: Mapping[str, float]) -> float | None:
    passed = 0.0 if job.started is None else time.monotonic() - job.started
    if job.state == "running" and job.share >= _LEAST_SHARE:
        return passed * (1 - job.share) / job.share
    usual = typical.get(job.kind.name)
    return None if usual is None else max(0.0, usual - passed)
