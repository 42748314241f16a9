"""Dense and compressed text after one prompt; its pieces come as they are written."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flashsvd.generation.pair import PairRequest, TextPair
from flashsvd.jobs.kind import Emit, Kind
from flashsvd.progress import Progress

if TYPE_CHECKING:
    from flashsvd.session import Session

_EVERY_SECONDS = 0.05


class _Gathered:
    """Sends what was written since the last time, a few times a second: a GPU writes hundreds of tokens in one.

    A part is [engine, text, whether it is the last].
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._text, self._sent = "", 0.0

    def add(self, engine: str, piece: str) -> None:
        self._text += piece
        if not piece or time.perf_counter() - self._sent >= _EVERY_SECONDS:
            self._emit([engine, self._text, not piece])
            self._text, self._sent = "", time.perf_counter()


def _run(request: PairRequest, session: Session, progress: Progress, emit: Emit) -> TextPair:
    from flashsvd.generation.write_pair import write_pair

    return write_pair(request, session, progress, _Gathered(emit).add)


KIND = Kind("generate", "Writing", PairRequest, _run)
