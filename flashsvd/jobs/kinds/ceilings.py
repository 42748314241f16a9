"""What the worker's machine can do at most: matrix products and a copy, measured."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flashsvd.jobs.kind import Emit, Kind
from flashsvd.progress import Progress
from flashsvd.results import Machine

if TYPE_CHECKING:
    from flashsvd.session import Session


@dataclass(frozen=True)
class CeilingsRequest:
    """Which machine and precision to measure."""

    dtype: str = "fp32"
    device: str = "auto"


@dataclass(frozen=True)
class MachineCeiling:
    """Rates in FLOP/s and bytes/s of one machine in one precision."""

    created: str
    machine: Machine
    dtype: str
    flops_s: float
    bytes_s: float


def _run(request: CeilingsRequest, _: Session, progress: Progress, __: Emit) -> MachineCeiling:
    from flashsvd.measure.ceilings import measure_ceilings
    from flashsvd.measure.machine import describe_machine
    from flashsvd.models.load import pick_device

    progress(f"Measuring a matrix product in {request.dtype} and a copy", 0.1)
    device = pick_device(request.device)
    found = measure_ceilings(device, (request.dtype,))
    progress("Done", 1.0)
    rate = found.tflops(request.dtype)
    assert rate is not None
    return MachineCeiling(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(device),
        dtype=request.dtype,
        flops_s=rate * 1e12,
        bytes_s=found.copy_tbps * 1e12,
    )


KIND = Kind("ceilings", "Ceilings", CeilingsRequest, _run)
