"""Memory timelines of engines that are run without memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashsvd.jobs.kind import Emit, Kind
from flashsvd.measure.predicted import Prediction, PredictRequest, predict
from flashsvd.progress import Progress

if TYPE_CHECKING:
    from flashsvd.session import Session


def _run(request: PredictRequest, session: Session, progress: Progress, _: Emit) -> Prediction:
    return predict(request, progress)


KIND = Kind("predict", "Prediction", PredictRequest, _run)
