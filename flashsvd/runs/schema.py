"""The tables of a run store, their versions, and the list's side of a run."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from typing import Any

from flashsvd.runs.facts import facts_of

VERSION = 3
_VERSION_1 = (
    """CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    created TEXT NOT NULL,
    model TEXT NOT NULL,
    method TEXT NOT NULL,
    keep REAL,
    machine TEXT NOT NULL,
    result TEXT NOT NULL
)""",
    "CREATE INDEX runs_by_model ON runs (kind, model, id)",
    """CREATE TABLE timelines (
    run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    engine TEXT NOT NULL,
    events BLOB NOT NULL,
    PRIMARY KEY (run, engine)
)""",
)
# A table of its own: columns added behind `result` would be read through all of its pages.
_VERSION_2 = (
    """CREATE TABLE entries (
    run INTEGER PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
    name TEXT NOT NULL DEFAULT '',
    pinned INTEGER NOT NULL DEFAULT 0,
    deleted_at TEXT,
    digest TEXT NOT NULL,
    engine TEXT NOT NULL,
    batch INTEGER,
    seq INTEGER,
    dtype TEXT NOT NULL,
    peak_bytes INTEGER,
    median_ms REAL,
    dense_peak_bytes INTEGER,
    dense_ms REAL,
    metric TEXT NOT NULL,
    score REAL,
    lower_is_better INTEGER NOT NULL,
    samples INTEGER,
    checked INTEGER,
    points INTEGER
)""",
    "CREATE INDEX entries_by_digest ON entries (digest)",
)
_VERSION_3 = (
    "CREATE TABLE costs (id INTEGER PRIMARY KEY, model TEXT NOT NULL, result TEXT NOT NULL)",
    "CREATE INDEX costs_by_model ON costs (model, id)",
)
STEPS = (_VERSION_1, _VERSION_2, _VERSION_3)
"""What makes version n + 1 of version n."""

MISSING = "FROM runs LEFT JOIN entries ON run = id WHERE run IS NULL"
"""Runs without entries, which a program of version 1 adds."""


def version_of(connection: sqlite3.Connection) -> int:
    """Of a file; 0 of a new one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def enter_missing(connection: sqlite3.Connection) -> None:
    """Writes the list's side of runs that have none."""
    numbers = [number for (number,) in connection.execute(f"SELECT id {MISSING}").fetchall()]
    for number in numbers:
        kind, result = connection.execute("SELECT kind, result FROM runs WHERE id = ?", (number,)).fetchone()
        try:
            data = json.loads(result)
        except ValueError:
            data = {}
        enter(connection, number, kind, data if isinstance(data, dict) else {}, "", False)


def enter(
    connection: sqlite3.Connection, number: int, kind: str, data: dict[str, Any], name: str, pinned: bool
) -> None:
    """Writes the list's side of one run. data: of its result, as JSON gives it."""
    entry = {"run": number, "name": name, "pinned": pinned, **dataclasses.asdict(facts_of(kind, data))}
    connection.execute(
        f"INSERT INTO entries ({', '.join(entry)}) VALUES ({', '.join('?' * len(entry))})",
        tuple(entry.values()),
    )
