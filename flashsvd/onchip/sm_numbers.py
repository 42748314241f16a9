"""What a trace of programs on multiprocessors says in numbers. Pure functions of its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flashsvd.onchip.sm_trace import SmTrace

Times = NDArray[np.int64]


@dataclass(frozen=True)
class SmNumbers:
    """A launch on `sm_count` multiprocessors, of which `used` ran a program.

    least, median, most: programs that a multiprocessor ran, over all of them. makespan_ns: from the first start to the
    last end. busy: share of the multiprocessors' time in it, 0 to 1, with a program resident. tail_ns: from when the
    first of those used had run its last program, to the end. seen: the most programs that were on one multiprocessor
    at once, and `seen_on` the share of the used that reached it. program_ns: of the median program.
    """

    programs: int
    sm_count: int
    used: int
    least: int
    median: float
    most: int
    makespan_ns: int
    busy: float
    tail_ns: int
    seen: int
    seen_on: float
    program_ns: float


def numbers(trace: SmTrace) -> SmNumbers:
    """The numbers under the picture."""
    sm, start, end = trace.sm, trace.start_ns, trace.end_ns
    counts = np.bincount(sm, minlength=trace.sm_count)
    used = np.flatnonzero(counts)
    makespan = int(end.max() - start.min())
    peaks, resident, last = [], 0, []
    for one in used:
        mine = sm == one
        peaks.append(most_at_once(start[mine], end[mine]))
        resident += covered(start[mine], end[mine])
        last.append(int(end[mine].max()))
    seen = max(peaks)
    return SmNumbers(
        programs=trace.programs,
        sm_count=trace.sm_count,
        used=len(used),
        least=int(counts.min()),
        median=float(np.median(counts)),
        most=int(counts.max()),
        makespan_ns=makespan,
        busy=resident / (makespan * trace.sm_count) if makespan else 1.0,
        tail_ns=int(end.max()) - min(last),
        seen=seen,
        seen_on=peaks.count(seen) / len(peaks),
        program_ns=float(np.median(end - start)),
    )


def most_at_once(start: Times, end: Times) -> int:
    """The most of these programs that ran at one time. Where one ends as another starts, they do not meet: the timer
    counts in steps, and a multiprocessor takes the next program when one has left.

    >>> most_at_once(np.array([0, 0, 32, 64]), np.array([64, 32, 96, 96]))
    2
    """
    if not len(start):
        return 0
    at = np.concatenate([end, start])
    step = np.concatenate([np.full(len(end), -1), np.ones(len(start), int)])
    order = np.lexsort((step, at))
    # A program shorter than the timer's step ends where it starts.
    return max(1, int(np.cumsum(step[order]).max()))


def covered(start: Times, end: Times) -> int:
    """Nanoseconds in which at least one of these programs ran.

    >>> covered(np.array([0, 10, 50]), np.array([20, 30, 60]))
    40
    """
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    gaps = np.maximum(start[1:] - reach[:-1], 0).sum()
    return int(reach[-1] - start[0] - gaps) if len(start) else 0


def lanes(trace: SmTrace) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every program, the place on its multiprocessor that it ran in, from 0, and how many ran there before it.

    Places are taken in the order of starts, each the lowest that is free, so there are `SmNumbers.seen` of them
    (more where a program is shorter than the timer's step).
    """
    lane, turn = np.zeros(trace.programs, np.int64), np.zeros(trace.programs, np.int64)
    free: dict[int, list[int]] = {}
    ran: dict[int, list[int]] = {}
    for program in np.lexsort((trace.end_ns, trace.start_ns)):
        one = int(trace.sm[program])
        ends, counts = free.setdefault(one, []), ran.setdefault(one, [])
        start = trace.start_ns[program]
        place = next((place for place, until in enumerate(ends) if until <= start), len(ends))
        if place == len(ends):
            ends.append(0)
            counts.append(0)
        lane[program], turn[program] = place, counts[place]
        ends[place] = int(trace.end_ns[program])
        counts[place] += 1
    return lane, turn


def busy_over_time(trace: SmTrace, bins: int = 240) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middles of `bins` equal spans of the makespan in ns, and the programs that were resident in each, on average."""
    edges = np.linspace(0, max(int(trace.end_ns.max()), 1), bins + 1)
    started = _integral(trace.start_ns, edges)
    ended = _integral(trace.end_ns, edges)
    width = edges[1] - edges[0]
    return (edges[:-1] + edges[1:]) / 2, np.diff(started - ended) / width


def _integral(times: Times, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of how many times are past, up to every edge."""
    ordered = np.sort(times).astype(float)
    past = np.searchsorted(ordered, edges, side="right")
    summed = np.concatenate([[0.0], np.cumsum(ordered)])
    return past * edges - summed[past]


Verdict = Literal["as predicted", "too few programs", "fewer than predicted", "more than predicted"]


def verdict(trace: SmTrace, found: SmNumbers) -> tuple[Verdict, int]:
    """Whether the hardware held as many programs to a multiprocessor as the rules of occupancy say of the build that
    was traced, and what they say. A grid that does not fill all places may show fewer."""
    predicted = trace.predicted().blocks
    if found.seen == predicted:
        return "as predicted", predicted
    if found.seen > predicted:
        return "more than predicted", predicted
    # Programs are dealt out one to a multiprocessor at a time.
    enough = found.programs > found.seen * found.sm_count
    return ("fewer than predicted" if enough else "too few programs"), predicted


def frame(trace: SmTrace) -> pd.DataFrame:
    """One row a program, for saving."""
    lane, turn = lanes(trace)
    return pd.DataFrame(
        {
            "program": np.arange(trace.programs),
            "sm": trace.sm,
            "place": lane,
            "turn": turn,
            "start_ns": trace.start_ns,
            "end_ns": trace.end_ns,
            "duration_ns": trace.end_ns - trace.start_ns,
        }
    )
