"""One job as several tasks of workers: how far all of them are, and what they made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_JOIN_SHARE = 0.2
"""Of a job's progress, for what is left to do when its pieces are there."""


@dataclass
class Piece:
    """One task. share: of it done, 0 to 1; begun: whether a worker has said so; result: as soon as it has ended."""

    request: Any
    future: Any = None
    share: float = 0.0
    begun: bool = False
    ended: bool = False
    result: Any = None


@dataclass
class Pieces:
    """The tasks of a job, and the one that joins them, last, once it is sent. Of a job that is one task: that one."""

    members: list[Piece] = field(default_factory=list)
    joining: Piece | None = None

    @staticmethod
    def of(requests: Sequence[Any]) -> Pieces:
        return Pieces([Piece(request) for request in requests])

    @property
    def several(self) -> bool:
        return len(self.members) > 1

    @property
    def all(self) -> list[Piece]:
        return [*self.members, *([self.joining] if self.joining else [])]

    @property
    def over(self) -> bool:
        return all(piece.ended for piece in self.all)

    @property
    def share(self) -> float:
        """Of the whole job.

        >>> Pieces([Piece(1, share=1.0), Piece(2)]).share
        0.4
        >>> Pieces([Piece(1, share=0.5)]).share
        0.5
        """
        mean = sum(piece.share for piece in self.members) / max(1, len(self.members))
        if not self.several:
            return mean
        return (1 - _JOIN_SHARE) * mean + _JOIN_SHARE * (self.joining.share if self.joining else 0.0)

    def hear(self, number: int, share: float) -> None:
        """What a worker says of one of them."""
        if number < len(self.all):
            piece = self.all[number]
            piece.begun, piece.share = True, max(piece.share, share)

    def words(self, stage: str) -> str:
        """A stage, and how many are done where there are several."""
        if not self.several or self.joining:
            return stage
        done = sum(piece.ended for piece in self.members)
        return f"{done} of {len(self.members)} parts done · {stage}"

    def waiting(self) -> list[Any]:
        """Futures of those that no worker has begun."""
        return [
            piece.future
            for piece in self.all
            if piece.future is not None and not piece.begun and not piece.ended
        ]
