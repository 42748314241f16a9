"""Programs of one launch, traced on the worker's GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashsvd.jobs.kind import Emit, Kind
from flashsvd.onchip.sm_trace import SmTrace
from flashsvd.onchip.trace_request import TraceRequest
from flashsvd.progress import Progress

if TYPE_CHECKING:
    from flashsvd.session import Session


def _run(request: TraceRequest, _: Session, progress: Progress, __: Emit) -> SmTrace:
    from flashsvd.onchip.trace import measure

    return measure(request.call, progress=progress, command="Measure here, on the Tiles page")


KIND = Kind("trace", "Tracing programs", TraceRequest, _run)
"""Its results are not kept: a trace is measured again in seconds, and a recording of one is a file that ships."""
