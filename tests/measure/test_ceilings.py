"""The machine's ceilings, at sizes that take no time."""

import pytest
import torch

from flashsvd.measure.ceilings import measure_ceilings
from flashsvd.measure.latency import time_engines


def test_rates_are_positive_and_only_what_was_asked_is_measured() -> None:
    found = measure_ceilings(torch.device("cpu"), ("fp32",), matmul_size=64, copy_bytes=2**16)
    assert found.fp32_tflops and found.fp32_tflops > 0 and found.copy_tbps > 0
    assert found.tflops("fp32") == found.fp32_tflops and found.tflops("bf16") is None
    assert (found.matmul_size, found.copy_bytes) == (64, 2**16)
    assert found.fp32_precision == torch.get_float32_matmul_precision()


def test_rates_follow_from_the_fast_side_of_the_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    from flashsvd.results import Quantiles

    monkeypatch.setattr(
        "flashsvd.measure.ceilings.time_engines",
        lambda calls, *_, **__: {name: (Quantiles(2.0, 4.0, 8.0), 20) for name in calls},
    )
    found = measure_ceilings(torch.device("cpu"), ("fp16",), matmul_size=100, copy_bytes=10**6)
    assert found.fp16_tflops == pytest.approx(2 * 100**3 / 2e-3 / 1e12)
    assert found.copy_tbps == pytest.approx(2 * 10**6 / 2e-3 / 1e12)


def test_what_runs_before_a_call_is_told_its_name_and_is_not_timed() -> None:
    order: list[str] = []
    found = time_engines(
        {"quick": lambda: order.append("call")},
        torch.device("cpu"),
        repeats=3,
        budget_seconds=10,
        before=lambda name: (order.append(name), sum(range(10**6))),
        warm=2,
    )
    assert order == ["quick", "call"] * 5
    assert found["quick"][0].p80 < 5


@pytest.mark.gpu
def test_a_gpu_is_faster_in_half_precision() -> None:
    found = measure_ceilings(torch.device("cuda"))
    assert found.bf16_tflops and found.fp32_tflops and found.bf16_tflops > 2 * found.fp32_tflops
