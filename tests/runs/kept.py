"""Invented runs for the tests of the store and its files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flashsvd.results import Comparison, Curve
from flashsvd.runs.export import Kept, read_kept
from flashsvd.store import RunStore
from tests.app import fakes


def comparison(keep: float = 0.5, **changes: object) -> Comparison:
    """A run with dense, lowrank and flash, whose flash outputs agree."""
    return dataclasses.replace(fakes.comparison(keep, gate=fakes.GREEN), **changes)


def curve() -> Curve:
    return fakes.curve()


def keep(folder: Path, *results: Comparison | Curve, name: str = "") -> tuple[Kept, ...]:
    """Results in a store of a folder, oldest first."""
    store = RunStore(folder / "runs.sqlite")
    for result in results:
        store.add(result, name)
    rows = store.rows(1000)
    return read_kept(store, sorted(rows, key=lambda row: row.id))
