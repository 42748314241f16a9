"""Invented launches for tests: programs dealt out to multiprocessors as a GPU does. Never shipped as if measured."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

from flashsvd.onchip.calls import KernelCall
from flashsvd.onchip.sm_trace import Build, SmTrace
from flashsvd.results import Machine, Quantiles

CALL = KernelCall("ffn", "bf16", 32, 512, 240, 240, width=3072, hidden=768)
MACHINE = Machine(
    "cuda:0",
    "NVIDIA H200",
    150 << 30,
    "Invented CPU",
    16,
    1 << 37,
    "Linux",
    "3.12",
    "2.11",
    "3.6",
    "5.17",
    "580.1",
)


def trace(
    programs: int = 256, at_once: int = 1, sm_count: int = 132, step: int = 32, seed: int = 0, **changes: Any
) -> SmTrace:
    """`at_once` programs on each of `sm_count` multiprocessors, a new one whenever one has left."""
    rng = np.random.default_rng(seed)
    free = [(0, place, sm) for place in range(at_once) for sm in range(sm_count)]
    heapq.heapify(free)
    rows = []
    for _ in range(programs):
        start, place, sm = heapq.heappop(free)
        start += int(rng.integers(0, 4)) * step if start else 0
        end = start + int(rng.integers(1200, 1400)) * step
        rows.append((sm, start, end))
        heapq.heappush(free, (end + step, place, sm))
    return of(rows, sm_count=sm_count, at_once=at_once, **changes)


def of(rows: list[tuple[int, int, int]], *, sm_count: int = 132, at_once: int = 1, **changes: Any) -> SmTrace:
    """Rows of (multiprocessor, start, end), of a build of which `at_once` fit an H200's multiprocessor."""
    sm, start, end = np.array(rows, np.int64).T.copy()
    build = Build(128, 0, (227 << 10) // at_once - 1024)
    fields: dict[str, Any] = {
        "call": CALL,
        "gpu": "H200",
        "machine": MACHINE,
        "sm_count": sm_count,
        "tiles": {"block_m": 64, "block_d": 64},
        "grid": (len(rows),),
        "warps": 4,
        "plain": build,
        "instrumented": build,
        "plain_ms": Quantiles(0.0879, 0.0881, 0.0884),
        "instrumented_ms": Quantiles(0.0887, 0.0889, 0.0893),
        "repeats": 50,
        "timer_step_ns": 32,
        "error": 0.0,
        "created": "2026-11-20T10:00:00+00:00",
        "command": "python -m flashsvd.onchip.trace bert-base",
        "sm": sm,
        "start_ns": start,
        "end_ns": end,
    }
    return SmTrace(**{**fields, **changes})
