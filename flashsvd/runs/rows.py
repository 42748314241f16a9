"""The list of runs: its lines, which are wanted, and in what order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LONGEST_NAME = 80


@dataclass(frozen=True)
class RunRow:
    """One line of the list of runs. Numbers are of `engine`, bytes and milliseconds; those of a curve are None."""

    id: int
    kind: str
    created: str
    model: str
    method: str
    keep: float | None
    machine: str
    name: str
    pinned: bool
    deleted_at: str | None
    digest: str
    engine: str
    batch: int | None
    seq: int | None
    dtype: str
    peak_bytes: int | None
    median_ms: float | None
    dense_peak_bytes: int | None
    dense_ms: float | None
    metric: str
    score: float | None
    lower_is_better: bool
    samples: int | None
    checked: bool | None
    points: int | None

    @property
    def title(self) -> str:
        """Its number, and its name or what it ran."""
        kept = "" if self.keep is None else f" {100 * self.keep:.0f} %"
        return f"#{self.id} " + (self.name or f"{self.model} {self.method}{kept}")


ORDERS = {
    "newest": "runs.id DESC",
    "oldest": "runs.id",
    "least memory": "peak_bytes IS NULL, peak_bytes, runs.id DESC",
    "fastest": "median_ms IS NULL, median_ms, runs.id DESC",
    "best score": "score IS NULL, metric, CASE WHEN lower_is_better THEN score ELSE -score END, runs.id DESC",
    "smallest keep": "keep IS NULL, keep, runs.id DESC",
    "name": "name = '', name COLLATE NOCASE, model, runs.id DESC",
}
"""How a list can be sorted; pinned runs come first in each."""


@dataclass(frozen=True)
class Wanted:
    """Which runs a list shows: None is any. text: words that must all occur in the name, model, method, machine,
    precision or number. deleted: those that wait to be purged instead of all others.
    """

    model: str | None = None
    method: str | None = None
    machine: str | None = None
    kind: str | None = None
    text: str = ""
    deleted: bool = False
    order: str = "newest"


COLUMNS = tuple(item.name for item in dataclasses.fields(RunRow))
TEXT = "name || ' ' || model || ' ' || method || ' ' || machine || ' ' || dtype || ' ' || kind || ' #' || runs.id"


def row_of(values: Sequence[Any]) -> RunRow:
    """From the values of COLUMNS."""
    found = dict(zip(COLUMNS, values, strict=True))
    for flag in ("pinned", "lower_is_better", "checked"):
        found[flag] = None if found[flag] is None else bool(found[flag])
    return RunRow(**found)


def clean_name(name: str) -> str:
    """A name on one line, without what cannot be seen, cut to LONGEST_NAME.

    >>> clean_name("  best\\n of\\tten ")
    'best of ten'
    """
    words = "".join(letter if letter.isprintable() else " " for letter in name[:1000]).split()
    return " ".join(words)[:LONGEST_NAME].rstrip()
