"""Every run, kept in SQLite: what was asked, on what machine, what came out, and what a person says of it."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from flashsvd.curve_set import CostTable
from flashsvd.errors import InputError
from flashsvd.paths import home
from flashsvd.recording import comparison_from_json
from flashsvd.results import TIMELINE_COLUMNS, Comparison, Curve, from_json, to_json
from flashsvd.runs.rows import COLUMNS, ORDERS, TEXT, RunRow, Wanted, clean_name, row_of
from flashsvd.runs.schema import MISSING, STEPS, VERSION, enter, enter_missing, version_of

PURGE_DAYS = 30
MOST_COSTS = 50
"""Tables of costs that are kept of a model; older ones go."""
_WAIT_SECONDS = 30.0


class RunStore:
    """A file of runs; each call opens it anew, so any thread or process may use it.

    Raises (the constructor and every method):
        InputError: the file is no run store, one of a later version, or cannot be read or written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or home() / "runs.sqlite"
        self._ready = False
        self._prepare()

    def _prepare(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"runs cannot be kept in {self.path.parent} ({error.strerror or error}): "
                "set FLASHSVD_HOME to a folder that can be written to"
            ) from None
        with self._open() as connection:
            version = version_of(connection)
        if version > VERSION:
            raise InputError(f"{self.path} is of version {version}, this program reads {VERSION}: update it")
        if version < VERSION:
            self._upgrade()
        self._ready = True

    def _upgrade(self) -> None:
        self._use_wal()
        with self._open(write=True) as connection:
            # Another process may have done it while this one waited for the lock.
            version = version_of(connection)
            if version == 0 and connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                raise InputError(
                    f"{self.path} is not a run store (it holds other tables): move it away to start a new one"
                )
            for step in STEPS[version:VERSION]:
                for statement in step:
                    connection.execute(statement)
            if version < VERSION:
                connection.execute(f"PRAGMA user_version = {VERSION}")
                enter_missing(connection)

    def _use_wal(self) -> None:
        # SQLite does not wait for a lock here as it does elsewhere.
        end = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                with self._open() as connection:
                    connection.execute("PRAGMA journal_mode = WAL")
                return
            except InputError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def add(self, result: Comparison | Curve, name: str = "", *, pinned: bool = False) -> int:
        """Keeps a result; returns its number."""
        kind = "compare" if isinstance(result, Comparison) else "curve"
        keep = result.keep if isinstance(result, Comparison) else None
        data = to_json(result)
        row = (kind, result.created, result.model.name, result.method, keep, result.machine.label)
        runs = result.runs if isinstance(result, Comparison) else ()
        timelines = [(run.engine, _to_parquet(run.timeline)) for run in runs]
        with self._open(write=True) as connection:
            cursor = connection.execute(
                "INSERT INTO runs (kind, created, model, method, keep, machine, result) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*row, json.dumps(data)),
            )
            number = int(cursor.lastrowid or 0)
            connection.executemany(
                "INSERT INTO timelines VALUES (?, ?, ?)", [(number, *pair) for pair in timelines]
            )
            enter(connection, number, kind, data, clean_name(name), pinned)
        return number

    def add_costs(self, table: CostTable) -> None:
        """Keeps what plans of curves took to run, beside the runs."""
        with self._open(write=True) as connection:
            connection.execute(
                "INSERT INTO costs (model, result) VALUES (?, ?)", (table.model, json.dumps(to_json(table)))
            )
            connection.execute(
                "DELETE FROM costs WHERE model = ? AND id NOT IN "
                "(SELECT id FROM costs WHERE model = ? ORDER BY id DESC LIMIT ?)",
                (table.model, table.model, MOST_COSTS),
            )

    def costs(self, model: str) -> list[CostTable]:
        """Kept costs of a model's plans, newest first; what cannot be read is left out."""
        with self._open() as connection:
            found = connection.execute(
                "SELECT result FROM costs WHERE model = ? ORDER BY id DESC", (model,)
            ).fetchall()
        tables = []
        for (result,) in found:
            with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, InputError):
                tables.append(from_json(CostTable, json.loads(result)))
        return tables

    def get(self, number: int) -> Comparison | Curve:
        """Raises InputError where there is no such run."""
        with self._open() as connection:
            found = connection.execute("SELECT kind, result FROM runs WHERE id = ?", (number,)).fetchone()
            if found is None:
                raise InputError(f"there is no run {number}")
            events = dict(
                connection.execute("SELECT engine, events FROM timelines WHERE run = ?", (number,)).fetchall()
            )
        try:
            data = json.loads(found[1])
            if found[0] == "curve":
                return from_json(Curve, data)
            return comparison_from_json(data, lambda engine: _from_parquet(events[engine]))
        except (ValueError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"run {number} cannot be read ({type(error).__name__}): delete it") from None

    def latest(self, kind: str, model: str) -> Comparison | Curve | None:
        """The newest run of a kind ("compare" or "curve") for a model, or None."""
        with self._open() as connection:
            found = connection.execute(
                "SELECT id FROM runs LEFT JOIN entries ON run = id WHERE kind = ? AND model = ? "
                "AND deleted_at IS NULL ORDER BY id DESC LIMIT 1",
                (kind, model),
            ).fetchone()
        return None if found is None else self.get(found[0])

    def find(self, digest: str) -> RunRow | None:
        """The newest run with this content, deleted or not; None where there is none."""
        found = self._rows("entries.digest = ?", (digest,), "runs.id DESC", 1)
        return found[0] if found else None

    def row(self, number: int) -> RunRow | None:
        """One run's line, deleted or not; None where there is no such run."""
        found = self._rows("runs.id = ?", (number,), "runs.id", 1)
        return found[0] if found else None

    def rows(self, limit: int = 50, wanted: Wanted | None = None) -> list[RunRow]:
        """The runs that are wanted, pinned ones first; all but deleted ones, newest first, by default."""
        wanted = wanted or Wanted()
        if wanted.order not in ORDERS:
            raise InputError(f"runs are sorted by one of {', '.join(ORDERS)}, got {wanted.order!r}")
        where, values = ["deleted_at IS NOT NULL" if wanted.deleted else "deleted_at IS NULL"], []
        for column in ("model", "method", "machine", "kind"):
            value = getattr(wanted, column)
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        for word in wanted.text[:1000].split()[:20]:
            where.append(TEXT + r" LIKE ? ESCAPE '\'")
            values.append("%" + word.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%")
        return self._rows(" AND ".join(where), tuple(values), f"pinned DESC, {ORDERS[wanted.order]}", limit)

    def values(self, column: str) -> list[str]:
        """What the runs have as model, method, machine or kind, in order, deleted ones left out."""
        if column not in ("model", "method", "machine", "kind"):
            raise InputError(f"runs are told apart by model, method, machine or kind, got {column!r}")
        with self._open() as connection:
            found = connection.execute(
                f"SELECT DISTINCT {column} FROM runs LEFT JOIN entries ON run = id "
                f"WHERE deleted_at IS NULL ORDER BY {column}"
            ).fetchall()
        return [str(value) for (value,) in found]

    def count_deleted(self) -> int:
        """How many runs wait to be purged."""
        with self._open() as connection:
            found = connection.execute("SELECT COUNT(*) FROM entries WHERE deleted_at IS NOT NULL").fetchone()
        return int(found[0])

    def rename(self, number: int, name: str) -> None:
        """Gives a run a name, of LONGEST_NAME characters at most; an empty one takes it away."""
        self._set((number,), "name = ?", clean_name(name))

    def pin(self, numbers: Iterable[int], pinned: bool = True) -> None:
        """Keeps runs at the top of every list, or no longer."""
        self._set(numbers, "pinned = ?", int(pinned))

    def delete(self, numbers: Iterable[int], now: datetime | None = None) -> None:
        """Takes runs out of all lists; `restore` brings them back until they are purged after PURGE_DAYS."""
        moment = now or datetime.now(UTC)
        self._set(numbers, "deleted_at = ?", moment.isoformat(timespec="seconds"))
        self.purge(moment)

    def restore(self, numbers: Iterable[int]) -> None:
        """Brings deleted runs back."""
        self._set(numbers, "deleted_at = ?", None)

    def purge(self, now: datetime | None = None) -> int:
        """Forgets what was deleted PURGE_DAYS ago or earlier; returns how many runs."""
        before = (now or datetime.now(UTC)) - timedelta(days=PURGE_DAYS)
        with self._open(write=True) as connection:
            cursor = connection.execute(
                "DELETE FROM runs WHERE id IN (SELECT run FROM entries WHERE deleted_at <= ?)",
                (before.isoformat(timespec="seconds"),),
            )
        return cursor.rowcount

    def _set(self, numbers: Iterable[int], change: str, value: Any) -> None:
        with self._open(write=True) as connection:
            enter_missing(connection)
            connection.executemany(
                f"UPDATE entries SET {change} WHERE run = ?", [(value, int(number)) for number in numbers]
            )

    def _rows(self, where: str, values: Sequence[Any], order: str, limit: int) -> list[RunRow]:
        with self._open() as connection:
            missing = connection.execute(f"SELECT 1 {MISSING} LIMIT 1").fetchone()
        if missing:
            # A program of version 1 that still runs adds runs without entries.
            with self._open(write=True) as connection:
                enter_missing(connection)
        with self._open() as connection:
            found = connection.execute(
                f"SELECT {', '.join(COLUMNS)} FROM runs JOIN entries ON run = runs.id WHERE {where} "
                f"ORDER BY {order} LIMIT ?",
                (*values, limit),
            ).fetchall()
        return [row_of(values) for values in found]

    @contextlib.contextmanager
    def _open(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection in one transaction. `write` takes the lock at once: a reader that turns writer may fail."""
        if self._ready and not self.path.exists():
            # Its folder was emptied while this program ran: what ends now is kept in a new file.
            self._ready = False
            self._prepare()
        try:
            connection = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)
            try:
                connection.execute("PRAGMA foreign_keys = ON")
                if write:
                    connection.execute("BEGIN IMMEDIATE")
                yield connection
                if write:
                    connection.execute("COMMIT")
            finally:
                # Closing rolls back what was not committed.
                connection.close()
        except sqlite3.OperationalError as error:
            raise InputError(
                f"runs cannot be kept in {self.path} ({error}): check that the folder can be written to, or set "
                "FLASHSVD_HOME to another"
            ) from None
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{self.path} is not a run store ({error}): move it away to start a new one"
            ) from None


def _to_parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, compression="zstd", index=False)
    return buffer.getvalue()


def _from_parquet(data: bytes) -> pd.DataFrame:
    frame = pd.read_parquet(io.BytesIO(data))
    return frame[list(TIMELINE_COLUMNS)]
