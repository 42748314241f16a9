"""A person's own text, classified dense and compressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashsvd.classification.pair import ClassifyRequest, ClassPair
from flashsvd.jobs.kind import Emit, Kind
from flashsvd.progress import Progress

if TYPE_CHECKING:
    from flashsvd.session import Session


def _run(request: ClassifyRequest, session: Session, progress: Progress, _: Emit) -> ClassPair:
    from flashsvd.classification.classify import classify_pair

    return classify_pair(request, session, progress)


KIND = Kind("classify", "Classification", ClassifyRequest, _run)
