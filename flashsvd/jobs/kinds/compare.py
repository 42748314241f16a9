"""Dense, low-rank and FlashSVD on one input. Memory and latency come first, the scores with the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from flashsvd.jobs.kind import Emit, Kind
from flashsvd.progress import Progress
from flashsvd.recording import comparison_from_json
from flashsvd.results import CompareRequest, Comparison, to_json

if TYPE_CHECKING:
    from flashsvd.session import Session


def _run(request: CompareRequest, session: Session, progress: Progress, emit: Emit) -> Comparison:
    from flashsvd.compare import compare

    return compare(request, session, progress, lambda early: emit(_plain(early)))


def _plain(early: Comparison) -> dict[str, Any]:
    timelines = {run.engine: run.timeline.to_dict("list") for run in early.runs}
    return {"comparison": to_json(early), "timelines": timelines}


def _part(data: Any) -> Comparison:
    return comparison_from_json(data["comparison"], lambda name: pd.DataFrame(data["timelines"][name]))


KIND = Kind("compare", "Live run", CompareRequest, _run, _part, keep=True)
