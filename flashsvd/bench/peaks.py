"""Peak memory of one call, by whatever means the device and the engine allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flashsvd.measure.memory import allocator_peak_bytes, peak_activation_bytes, record_timeline

OPAQUE = ("dense-compile", "lowrank-compile")
"""Rows whose buffers a CPU run cannot follow: compiled code allocates below the dispatcher."""


def engine_peak_bytes(name: str, model: Any, call: Callable[[], object], device: torch.device) -> int | None:
    """Peak bytes of one call of an engine, over what was resident before it; None where it cannot be told.

    A model that replays a CUDA graph allocates next to nothing when called: what its capture took is asked of it
    (`flashsvd.engines.graph`).
    """
    captured = getattr(model.forward, "peak_bytes", None)
    if captured is not None:
        return int(captured)
    if device.type != "cuda" and name in OPAQUE:
        return None
    return peak_bytes(model, call, device)


def peak_bytes(model: nn.Module, call: Callable[[], object], device: torch.device) -> int:
    """The allocator's peak on CUDA, elsewhere the most that is alive between two ops."""
    if device.type == "cuda":
        return allocator_peak_bytes(device, call)
    return peak_activation_bytes(record_timeline(model, [], call))


class NoModel(nn.Module):
    """Stands for the model where a bare op is measured: what is resident are its arguments."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
