"""What a call keeps alive at its peak."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.measure.memory import Recorder
from flashsvd.teaching import peak_bytes

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=6), st.booleans())
def test_what_is_kept_adds_up_and_what_is_dropped_does_not(sizes: list[int], kept: bool) -> None:
    def call() -> list[torch.Tensor]:
        held = []
        for size in sizes:
            made = torch.zeros(size)
            if kept:
                held.append(made)
            del made
        return held

    assert peak_bytes(call, CPU) == 4 * (sum(sizes) if kept else max(sizes))


def test_inputs_do_not_count() -> None:
    x = torch.ones(1000, 1000)
    assert peak_bytes(lambda: x.t(), CPU) == 0
    assert peak_bytes(lambda: x @ x, CPU) == pytest.approx(4e6)


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert Recorder(torch.device("cuda")).device == torch.device("cuda", 3)
    assert Recorder(torch.device("cuda", 1)).device == torch.device("cuda", 1)
    assert Recorder(CPU).device == CPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_what_is_alive_on_a_gpu_adds_up(name: str) -> None:
    x = torch.ones(1 << 20, device=name)
    assert peak_bytes(lambda: (x + 1) + (x + 2), torch.device(name)) == 3 * x.nbytes
