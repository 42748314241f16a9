"""What machine this is, for the label under every number."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil
import torch
import transformers

from flashsvd.results import Machine


def describe_machine(device: torch.device) -> Machine:
    """The machine as a run on `device` sees it."""
    accelerator, accelerator_memory, driver = None, None, None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        accelerator, accelerator_memory = properties.name, properties.total_memory
        driver = _driver_version()
    return Machine(
        device=str(device),
        accelerator=accelerator,
        accelerator_memory_bytes=accelerator_memory,
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        triton=_triton_version(),
        transformers=transformers.__version__,
        driver=driver,
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _driver_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    words = text.partition("Kernel Module")[2].split()
    return next((word for word in words if word[0].isdigit()), None)


def _triton_version() -> str | None:
    try:
        from importlib.metadata import version

        return version("triton")
    except ImportError:
        return None
