"""Curves of several methods, by as many workers as there are; their points come one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flashsvd.curve_set import CurvePart, CurveSet, CurvesRequest
from flashsvd.jobs.kind import Emit, Kind
from flashsvd.progress import Progress
from flashsvd.results import from_json, to_json

if TYPE_CHECKING:
    from flashsvd.session import Session


def _run(request: CurvesRequest, session: Session, progress: Progress, emit: Emit) -> CurveSet:
    from flashsvd.curves import score_curves

    return score_curves(request, session, progress, lambda part: emit(to_json(part)))


def _join(
    request: CurvesRequest, pieces: Sequence[CurveSet], session: Session, progress: Progress, _: Emit
) -> CurveSet:
    from flashsvd.curves import join_curves

    return join_curves(request, pieces, session, progress)


def _part(data: Any) -> CurvePart:
    part: CurvePart = from_json(CurvePart, data)
    return part


KIND = Kind("curves", "Curves", CurvesRequest, _run, _part, keep=True, split=CurvesRequest.pieces, join=_join)
