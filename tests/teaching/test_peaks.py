"""What a call keeps alive at its peak."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
