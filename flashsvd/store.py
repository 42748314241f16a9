"""Every run, kept in SQLite: what was asked, on what machine, what came out."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from flashsvd.errors import InputError
from flashsvd.paths import home
from flashsvd.recording import comparison_from_json
from flashsvd.results import Comparison, Curve, from_json, to_json

_VERSION = 1
_SCHEMA = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    created TEXT NOT NULL,
    model TEXT NOT NULL,
    method TEXT NOT NULL,
    keep REAL,
    machine TEXT NOT NULL,
    result TEXT NOT NULL
);
CREATE INDEX runs_by_model ON runs (kind, model, id);
CREATE TABLE timelines (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    engine TEXT NOT NULL,
    events BLOB NOT NULL,
    PRIMARY KEY (run, engine)
);
"""


@dataclass(frozen=True)
class RunRow:
    """One line of the list of runs."""

    id: int
    kind: str
    created: str
    model: str
    method: str
    keep: float | None
    machine: str


class RunStore:
    """A file of runs; each call opens it anew, so any thread or process may use it.

    Raises:
        InputError: the file is no run store, or one of a later version.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or home() / "runs.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._open() as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
                elif version != _VERSION:
                    raise InputError(
                        f"{self.path} is of version {version}, this program reads {_VERSION}: update it"
                    )
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{self.path} is not a run store ({error}): move it away to start a new one"
            ) from None

    def add(self, result: Comparison | Curve) -> int:
        """Keeps a result; returns its number."""
        kind = "compare" if isinstance(result, Comparison) else "curve"
        keep = result.keep if isinstance(result, Comparison) else None
        row = (kind, result.created, result.model.name, result.method, keep, result.machine.label)
        with self._open() as connection:
            cursor = connection.execute(
                "INSERT INTO runs (kind, created, model, method, keep, machine, result) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*row, json.dumps(to_json(result))),
            )
            number = int(cursor.lastrowid or 0)
            if isinstance(result, Comparison):
                connection.executemany(
                    "INSERT INTO timelines VALUES (?, ?, ?)",
                    [(number, run.engine, _to_parquet(run.timeline)) for run in result.runs],
                )
        return number

    def get(self, number: int) -> Comparison | Curve:
        """Raises InputError where there is no such run."""
        with self._open() as connection:
            found = connection.execute("SELECT kind, result FROM runs WHERE id = ?", (number,)).fetchone()
            if found is None:
                raise InputError(f"there is no run {number}")
            events = dict(
                connection.execute("SELECT engine, events FROM timelines WHERE run = ?", (number,)).fetchall()
            )
        data = json.loads(found[1])
        if found[0] == "curve":
            return from_json(Curve, data)
        return comparison_from_json(data, lambda engine: pd.read_parquet(io.BytesIO(events[engine])))

    def latest(self, kind: str, model: str) -> Comparison | Curve | None:
        """The newest run of a kind ("compare" or "curve") for a model, or None."""
        with self._open() as connection:
            found = connection.execute(
                "SELECT id FROM runs WHERE kind = ? AND model = ? ORDER BY id DESC LIMIT 1", (kind, model)
            ).fetchone()
        return None if found is None else self.get(found[0])

    def rows(self, limit: int = 50) -> list[RunRow]:
        """The newest runs first."""
        with self._open() as connection:
            found = connection.execute(
                "SELECT id, kind, created, model, method, keep, machine FROM runs ORDER BY id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [RunRow(*row) for row in found]

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=10)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            with connection:
                yield connection
        finally:
            connection.close()


def _to_parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, compression="zstd", index=False)
    return buffer.getvalue()
