"""A call captured as a CUDA graph that owns all the memory it works in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Captured(Generic[T]):
    """result: in the graph's own memory, which a replay writes over. peak_bytes: what the call takes beside what was
    there before, as the allocator counted it in a run ahead of the capture; cuBLAS's workspace, 32 MiB that a stream
    has in any case, is not in it."""

    graph: torch.cuda.CUDAGraph
    result: T
    peak_bytes: int


def capture(call: Callable[[], T], device: torch.device, pool: Any) -> Captured[T]:
    """Runs `call` twice to warm up, and once to capture it. pool: of memory, that several graphs share."""
    side = _side_stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        # The first run makes what is made once.
        call()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    _forget_workspaces()
    with torch.cuda.graph(graph, pool=pool, stream=side):
        result = call()
    _forget_workspaces()
    return Captured(graph, result, peak)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all warm-ups and captures, so that cuBLAS has one workspace for them."""
    return torch.cuda.Stream(device)


def _forget_workspaces() -> None:
    """cuBLAS's workspaces are let go before a capture, which then makes one in the graph's own memory, and after it,
    so that nobody else is given that one. A graph that was captured with an earlier one would replay into memory that
    is gone once others let go of it, as torch's own graphs do (`torch._inductor.cudagraph_trees`)."""
    torch._C._cuda_clearCublasWorkspaces()
