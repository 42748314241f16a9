"""What a kind of job is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashsvd.progress import Progress

if TYPE_CHECKING:
    from flashsvd.session import Session

Emit = Callable[[Any], None]
"""Takes a part of the result as soon as it is there, as plain data that JSON could hold."""


def _as_it_came(part: Any) -> Any:
    return part


@dataclass(frozen=True)
class Kind:
    """name: short, in lower case. title: what a person reads. request: the frozen class of its requests.

    run: does a request in a worker process, which keeps its models in a session; it may emit parts of the result, and
    raises FlashSVDError for what cannot be done. part: makes of an emitted part what `JobService.partial` gives. keep:
    whether its results are kept in the store of runs.

    split: for a kind that several workers can share, makes of a request and their number the requests of the pieces,
    which `run` does in any order; join: then makes the whole result of theirs, on one worker.
    """

    name: str
    title: str
    request: type
    run: Callable[[Any, Session, Progress, Emit], Any]
    part: Callable[[Any], Any] = _as_it_came
    keep: bool = False
    split: Callable[[Any, int], Sequence[Any]] | None = None
    join: Callable[[Any, Sequence[Any], Session, Progress, Emit], Any] | None = None
