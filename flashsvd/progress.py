"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with a stage in words and the share of it done, from 0 to 1. May raise Cancelled."""


class Stage:
    """The current stage, repeated between layers so that a cancel is heard during long forwards."""

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._now = ("", 0.0)

    def begin(self, words: str, share: float) -> None:
        self._now = (words, share)
        self.tick()

    def tick(self) -> None:
        self._report(*self._now)

    def part(self, words: str | None, first: float, last: float) -> Progress:
        """The progress of a part of the work, under its own words or, for None, as that part says."""
        return lambda stage, share: self.begin(words or stage, first + (last - first) * share)

    def share(self, words: str, first: float, last: float) -> Callable[[float], None]:
        """Begins a part; from the share of it that is done to a report of it."""
        self.begin(words, first)
        return lambda share: self.begin(words, first + (last - first) * share)
