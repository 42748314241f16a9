"""How much a call asks of a GPU: the kernels that run, and what the CPU had to launch for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

_LAUNCHES = (
    "cudaLaunchKernel",
    "cuLaunchKernel",
    "cudaGraphLaunch",
    "cuGraphLaunch",
    "cudaLaunchCooperative",
)
_COPIES = ("Memcpy", "Memset")


@dataclass(frozen=True)
class Launches:
    """kernels: run on the GPU, copies and fills not counted. launches: calls by which the CPU started kernels; one
    that starts a CUDA graph, whatever is in it, counts once."""

    kernels: int
    launches: int


def count_launches(call: Callable[[], object], device: torch.device) -> Launches | None:
    """Runs `call` once under the profiler; None without a GPU, or where the profiler is not let at its counters."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize(device)
    events = profiled.events() or ()
    on_gpu = torch.autograd.DeviceType.CUDA
    # Ranges that code names, such as a compiled region, are events of the GPU, too.
    ran = [event.name for event in events if event.device_type == on_gpu and not event.is_user_annotation]
    return counted(ran, [event.name for event in events if event.device_type != on_gpu])


def counted(on_gpu: Iterable[str], on_cpu: Iterable[str]) -> Launches | None:
    """Counts the profiler's names of what ran on the GPU and on the CPU.

    >>> counted(["gemv", "softmax", "Memcpy DtoD (Device -> Device)"], ["aten::add", "cudaGraphLaunch"])
    Launches(kernels=2, launches=1)
    """
    kernels = sum(not name.startswith(_COPIES) for name in on_gpu)
    launches = sum(name.startswith(_LAUNCHES) for name in on_cpu)
    return Launches(kernels, launches) if kernels else None
