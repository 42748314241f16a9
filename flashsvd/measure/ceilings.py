"""What this machine can do at most: the rates that every other number is held against, measured in the same run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from flashsvd.measure.latency import time_engines
from flashsvd.models.load import DTYPES

_MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}
_COPY_BYTES = {"cuda": 2**30, "cpu": 64 * 2**20}
_REPEATS = 20
_BUDGET_SECONDS = 5.0


@dataclass(frozen=True)
class Ceilings:
    """Rates of a square matrix product by dtype in TFLOP/s, None where not measured, and of a copy on the device
    in TB/s, reads and writes counted. Taken at the 20th percentile of latency, so that few runs can beat them.

    fp32_precision: what torch lets a float32 product be ("highest" is true float32, "high" is TF32).
    """

    fp32_tflops: float | None
    fp16_tflops: float | None
    bf16_tflops: float | None
    copy_tbps: float
    fp32_precision: str
    matmul_size: int
    copy_bytes: int

    def tflops(self, dtype: str) -> float | None:
        """The product ceiling of fp32, fp16 or bf16."""
        rates = {"fp32": self.fp32_tflops, "fp16": self.fp16_tflops, "bf16": self.bf16_tflops}
        return rates[dtype]


def measure_ceilings(
    device: torch.device,
    dtypes: Sequence[str] = tuple(DTYPES),
    *,
    matmul_size: int | None = None,
    copy_bytes: int | None = None,
) -> Ceilings:
    """Measures the product of two [size, size] matrices in each dtype, and a copy of `copy_bytes`.

    Sizes are 8192 and 1 GiB on a GPU; 1024 and 64 MiB elsewhere, where half types can be slow.
    """
    size = matmul_size or _MATMUL_SIZE[device.type]
    count = copy_bytes or _COPY_BYTES[device.type]
    calls: dict[str, Callable[[], object]] = {name: _product(size, name, device) for name in dtypes}
    source = torch.ones(count // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    calls["copy"] = lambda: target.copy_(source)
    found = time_engines(calls, device, repeats=_REPEATS, budget_seconds=_BUDGET_SECONDS)
    seconds = {name: quantiles.p20 / 1e3 for name, (quantiles, _) in found.items()}
    tflops = {name: 2 * size**3 / seconds[name] / 1e12 for name in dtypes}
    return Ceilings(
        fp32_tflops=tflops.get("fp32"),
        fp16_tflops=tflops.get("fp16"),
        bf16_tflops=tflops.get("bf16"),
        copy_tbps=2 * source.nbytes / seconds["copy"] / 1e12,
        fp32_precision=torch.get_float32_matmul_precision(),
        matmul_size=size,
        copy_bytes=source.nbytes,
    )


def _product(size: int, dtype: str, device: torch.device) -> Callable[[], object]:
    # Random, not constant, numbers: a GPU clocks higher on operands whose bits do not toggle.
    left, right = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)
