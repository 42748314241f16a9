"""Latency of several engines in one run: warmed up, in turn, as quantiles."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from flashsvd.results import Quantiles

_LEAST_REPEATS = 3


def time_engines(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    repeats: int,
    budget_seconds: float,
    progress: Callable[[float], None] | None = None,
    before: Callable[[str], object] | None = None,
    warm: int | None = None,
) -> dict[str, tuple[Quantiles, int]]:
    """Times every call `repeats` times, one of each in turn, so that a slow spell of the machine hits all alike.

    Fewer repeats, never under 3, where `budget_seconds` would be passed. CUDA events on a GPU, perf_counter
    elsewhere. `before` runs ahead of every call, outside its time, and is told its name. warm: untimed calls of each
    ahead of all; 3 on CUDA and 1 elsewhere if None. Returns quantiles in milliseconds and the repeats done.
    """
    if warm is None:
        warm = 3 if device.type == "cuda" else 1
    ready = {name: functools.partial(before, name) if before else _nothing for name in calls}
    for name, call in calls.items():
        for _ in range(warm):
            ready[name]()
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    done = 0
    while done < repeats and (done < _LEAST_REPEATS or time.perf_counter() - started < budget_seconds):
        for name, call in calls.items():
            times[name].append(_once(call, device, ready[name]))
        done += 1
        if progress:
            progress(max(done / repeats, min(1.0, (time.perf_counter() - started) / budget_seconds)))
    return {name: (quantiles(values), done) for name, values in times.items()}


def quantiles(milliseconds: list[float]) -> Quantiles:
    """20th, 50th and 80th percentile.

    >>> quantiles([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    Quantiles(p20=2.0, p50=3.5, p80=5.0)
    """
    p20, p50, p80 = np.percentile(milliseconds, [20, 50, 80])
    return Quantiles(float(p20), float(p50), float(p80))


def _nothing() -> None:
    """Nothing to do ahead of a call."""


def _once(call: Callable[[], object], device: torch.device, before: Callable[[], object]) -> float:
    if device.type != "cuda":
        before()
        started = time.perf_counter()
        call()
        return (time.perf_counter() - started) * 1e3
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    # Not waited for: while the GPU runs it, the CPU gets ahead, and its launches are not timed as GPU work.
    before()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
