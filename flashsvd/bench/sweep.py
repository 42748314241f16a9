"""Every combination of some lists of values, measured one after another; a point that does not fit is one line."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import torch

from flashsvd.bench.contest import one_line
from flashsvd.bench.rows import Baselines, Point, Row
from flashsvd.errors import InputError, OutOfMemoryError

_MOST_POINTS = 1000


class Request(Protocol):
    """What each benchmark's request says of itself."""

    @property
    def bench(self) -> str: ...

    @property
    def baselines(self) -> Baselines: ...

    def check(self) -> None: ...

    def config(self) -> dict[str, Any]: ...

    def command(self) -> str: ...


R = TypeVar("R", bound=Request)


def product(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations, the first name varying slowest.

    >>> product({"seq": (128, 512), "batch": (1,)})
    [{'seq': 128, 'batch': 1}, {'seq': 512, 'batch': 1}]

    Raises:
        InputError: more points than anyone would wait for.
    """
    count = 1
    for choices in values.values():
        count *= len(choices)
    if count > _MOST_POINTS:
        raise InputError(f"a sweep has at most {_MOST_POINTS} points, this one has {count}: shorten a list")
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def run_points(requests: Sequence[R], measure: Callable[[R], tuple[str, tuple[Row, ...]]]) -> Iterator[Point]:
    """Measures each request and gives its point as soon as it is done.

    Raises what `measure` raises, except for running out of memory, which is that point's failure.
    """
    for request in requests:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        about, failure = "", None
        rows: tuple[Row, ...] = ()
        try:
            about, rows = measure(request)
        except (OutOfMemoryError, torch.OutOfMemoryError) as error:
            failure = one_line(error)
        _release()
        yield Point(
            request.bench,
            request.config(),
            request.command(),
            created,
            about,
            request.baselines,
            rows,
            failure,
        )


def _release() -> None:
    """Leaves nothing of one point to the next, whose memory it would look like."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
