"""Memory that is poisoned until it is written, and counted while it lives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh memory holds NaN, so an element that an op forgets to write cannot pass as a plausible number."""

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return wrapper

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    yield


@pytest.fixture
def peak_extra_bytes() -> Callable[[Callable[[], torch.Tensor]], int]:
    """Most bytes alive at once while a call runs on the CPU, beyond those of the tensor it returns."""

    def measure(call: Callable[[], torch.Tensor]) -> int:
        call()
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            out = call()
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        alive = list(itertools.accumulate(event.nbytes() for event in events))
        return max(alive) - out.untyped_storage().nbytes()

    return measure
