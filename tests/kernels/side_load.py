"""Work on a second CUDA stream, so that a kernel under test shares the GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import torch

_BITS = {2: torch.int16, 4: torch.int32}


class SideLoad:
    """Keeps tensor cores and L2 busy while `step` is called once per run of the kernel under test.

    Nothing is allocated after the start, so memory can be counted beside it. On one H200 a race between a matrix
    product and the registers that it reads showed only while other work ran.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._factor = torch.randn(2048, 2048, device="cuda").bfloat16()
        self._product = torch.zeros_like(self._factor)
        self._far = torch.zeros(2, 8 << 20, dtype=torch.bfloat16, device="cuda")

    def step(self) -> None:
        """About 0.1 ms of work, asynchronous: three products of 2048, and a copy that passes through L2."""
        with torch.cuda.stream(self._stream):
            for _ in range(3):
                torch.mm(self._factor, self._factor, out=self._product)
            self._far[1].copy_(self._far[0])

    def __enter__(self) -> SideLoad:
        self._stream.wait_stream(torch.cuda.current_stream())
        # cuBLAS takes its workspace for this stream now, and not while memory is counted.
        self.step()
        self._stream.synchronize()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.synchronize()


def count_different(
    call: Callable[[], torch.Tensor], first: torch.Tensor, runs: int, before: Callable[[], None] | None = None
) -> int:
    """How many of the runs differ from `first` in any bit; counted where they are made and read once."""
    # As integers: -0 is equal to 0, and NaN to nothing.
    bits = _BITS[first.element_size()]
    different = torch.zeros((), dtype=torch.int64, device=first.device)
    for _ in range(runs):
        if before is not None:
            before()
        different += (call().view(bits) != first.view(bits)).any()
    return int(different)
