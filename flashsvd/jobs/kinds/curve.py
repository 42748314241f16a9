"""The score against keep; its points come one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashsvd.jobs.kind import Emit, Kind
from flashsvd.progress import Progress
from flashsvd.results import Curve, CurvePoint, CurveRequest, from_json, to_json

if TYPE_CHECKING:
    from flashsvd.session import Session


def _run(request: CurveRequest, session: Session, progress: Progress, emit: Emit) -> Curve:
    from flashsvd.curve import score_curve

    return score_curve(request, session, progress, lambda point: emit(to_json(point)))


def _point(data: Any) -> CurvePoint:
    point: CurvePoint = from_json(CurvePoint, data)
    return point


KIND = Kind("curve", "Curve", CurveRequest, _run, _point, keep=True)
