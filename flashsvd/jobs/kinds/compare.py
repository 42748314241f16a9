"""Dense, low-rank and FlashSVD on one input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashsvd.jobs.kind import Emit, Kind
from flashsvd.progress import Progress
from flashsvd.results import CompareRequest, Comparison

if TYPE_CHECKING:
    from flashsvd.session import Session


def _run(request: CompareRequest, session: Session, progress: Progress, _: Emit) -> Comparison:
    from flashsvd.compare import compare

    return compare(request, session, progress)


KIND = Kind("compare", "Live run", CompareRequest, _run, keep=True)
