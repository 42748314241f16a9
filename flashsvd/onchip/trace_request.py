"""What a job of kind "trace" is asked. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from flashsvd.onchip.calls import KernelCall


@dataclass(frozen=True)
class TraceRequest:
    """One launch, traced on the worker's GPU (`flashsvd.onchip.trace.measure`); an `SmTrace` comes of it."""

    call: KernelCall
