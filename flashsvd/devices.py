"""What a device has room for."""

from __future__ import annotations

import psutil
import torch


def available_bytes(device: torch.device) -> int:
    """Memory that a run on `device` could still take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available
