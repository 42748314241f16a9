"""What the outside sees of a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["starting", "queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class JobStatus:
    """`place` counts the jobs before this one, `fraction` runs from 0 to 1, `error` is one line.

    `warning` says what went wrong with a result after it was made, such as a store that is full. `left`: seconds until
    it is done, with those before it, as far as they can be told.
    """

    id: str
    kind: str
    state: State
    stage: str
    fraction: float
    place: int
    error: str | None
    seconds: float
    warning: str | None = None
    left: float | None = None

    @property
    def active(self) -> bool:
        return self.state in ("starting", "queued", "running")


@dataclass(frozen=True)
class QueuedJob:
    """One line of the queue. title: what a person reads of its kind. model: of its request, empty where it has none."""

    title: str
    model: str
    status: JobStatus
