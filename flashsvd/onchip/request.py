"""What a job of kind "compile" is asked, and what it gives. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from flashsvd.onchip.calls import KernelCall, sweep
from flashsvd.onchip.compiled import Compiled


@dataclass(frozen=True)
class CompileRequest:
    """A call for several GPUs; then, with `most` above 0, for one of them at every step of the rank up to `most`."""

    call: KernelCall
    gpus: tuple[str, ...]
    swept_gpu: str = ""
    most: int = 0

    @property
    def parts(self) -> tuple[tuple[tuple[KernelCall, ...], tuple[str, ...]], ...]:
        """Calls and the GPUs that each of them is compiled for, in order."""
        first = ((self.call,), self.gpus)
        if not self.most or not self.swept_gpu:
            return (first,)
        return first, (tuple(sweep(self.call, self.most)), (self.swept_gpu,))

    @property
    def count(self) -> int:
        """Rows that will come."""
        return sum(len(calls) * len(names) for calls, names in self.parts)


@dataclass(frozen=True)
class CompiledCalls:
    """All rows, in the order of the request."""

    rows: tuple[Compiled, ...]
