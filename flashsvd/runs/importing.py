"""Runs from the bytes of a file that may come from anyone: all of it is checked before any of it is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from flashsvd.errors import FlashSVDError, InputError
from flashsvd.recording import comparison_from_json
from flashsvd.results import TIMELINE_COLUMNS, Comparison, Curve, from_json, to_json
from flashsvd.runs.checking import LARGEST, LONGEST, check_common, check_metric, check_types
from flashsvd.runs.export import FORMAT
from flashsvd.runs.facts import digest_of
from flashsvd.runs.pages import unpacked_bytes
from flashsvd.runs.rows import clean_name
from flashsvd.store import RunStore

MAX_BYTES = 8 * 2**20
MAX_UNPACKED_BYTES = 64 * 2**20
MAX_ROWS = 500_000
MAX_RUNS = 500
_LARGEST_INPUT = 65_536
_ENGINE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,39}")
_WORDS = ("op", "module", "category")
_CATEGORIES = ("weight", "kv cache", "activation", "workspace")
_EXPECTED = "expected runs exported here as JSON, or a recording in Parquet"
_MAGIC = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x80", "a pickle, which is never opened"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"SQLite format 3", "a database"),
    (b"<", "HTML or XML"),
)


@dataclass(frozen=True)
class Imported:
    """A run of a file, and the name that it had there."""

    result: Comparison | Curve
    name: str = ""


@dataclass(frozen=True)
class ImportReport:
    """Numbers of the runs that were added, and of those that were there already."""

    added: tuple[int, ...]
    known: tuple[int, ...]


def import_runs(store: RunStore, data: bytes) -> ImportReport:
    """Keeps what a file holds; a run that is kept already is not kept twice, and comes back if it was deleted.

    Raises:
        InputError: as `read_runs`; then nothing was written.
    """
    added, known = [], []
    for item in read_runs(data):
        there = store.find(digest_of(_plain_json(item.result)))
        if there is None:
            added.append(store.add(item.result, item.name))
        else:
            if there.deleted_at is not None:
                store.restore((there.id,))
            known.append(there.id)
    return ImportReport(tuple(added), tuple(known))


def _plain_json(result: Comparison | Curve) -> Any:
    return json.loads(json.dumps(to_json(result)))


def read_runs(data: bytes) -> tuple[Imported, ...]:
    """The runs in a file's bytes. Nothing in them is executed, unpacked beyond MAX_UNPACKED_BYTES or used as a path.

    Raises:
        InputError: too large, of another kind, cut short, or with a value that no run has.
    """
    if len(data) > MAX_BYTES:
        raise InputError(
            f"the file has {len(data) / 2**20:.0f} MiB, at most {MAX_BYTES // 2**20} MiB are read: export fewer runs"
        )
    if not data.strip():
        raise InputError(f"the file is empty: {_EXPECTED}")
    try:
        if data[:4] == b"PAR1":
            return _from_recording(data)
        return _from_json(data)
    except InputError:
        raise
    except FlashSVDError as error:
        raise InputError(_line(error)) from None
    except (RecursionError, MemoryError, OverflowError):
        raise InputError(f"the file is nested too deep or asks for too much: {_EXPECTED}") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"the file does not hold a whole run ({_line(error)}): export it again") from None


def _line(error: Exception) -> str:
    """An error's text on one short line: it may quote the file."""
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else text[:240] + "…"


def _from_json(data: bytes) -> tuple[Imported, ...]:
    for magic, name in _MAGIC:
        if data.startswith(magic):
            raise InputError(f"the file is {name}: {_EXPECTED}")
    try:
        found = json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise InputError(f"the file is neither text nor Parquet: {_EXPECTED}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"the file is not JSON (line {error.lineno}: {error.msg}): {_EXPECTED}") from None
    if not isinstance(found, dict):
        raise InputError(f"the file holds no object: {_EXPECTED}")
    if found.get("format") == "flashsvd-plan/1":
        raise InputError("the file is a rank plan, not a run: open it on the Ranks page")
    if "format" not in found and "runs" in found and "plan" in found:
        # One run as the sidebar exports it.
        return (Imported(_comparison(found, {})),)
    if found.get("format") != FORMAT:
        raise InputError(f"the file has format {str(found.get('format'))[:40]!r}, expected {FORMAT!r}")
    runs = found.get("runs")
    if not isinstance(runs, list) or not runs:
        raise InputError("the file lists no runs")
    if len(runs) > MAX_RUNS:
        raise InputError(f"the file lists {len(runs)} runs, at most {MAX_RUNS} are read at once")
    return tuple(_entry(item) for item in runs)


def _no_constant(name: str) -> float:
    raise InputError(f"the file holds {name} where a number must be")


def _entry(item: Any) -> Imported:
    if not isinstance(item, dict) or not isinstance(item.get("result"), dict):
        raise InputError("an entry of the file holds no result")
    name = item.get("name", "")
    if not isinstance(name, str):
        raise InputError("a run's name must be text")
    if item.get("kind") == "curve":
        return Imported(_curve(item["result"]), clean_name(name))
    tables = item.get("timelines", {})
    if not isinstance(tables, dict):
        raise InputError("the timelines of a run must be an object of tables")
    return Imported(_comparison(item["result"], tables), clean_name(name))


def _from_recording(data: bytes) -> tuple[Imported, ...]:
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        metadata = file.metadata
        if metadata.num_rows > MAX_ROWS or metadata.num_columns > 64:
            raise InputError(
                f"the file has {metadata.num_rows:,} rows of {metadata.num_columns} columns, a recording at most "
                f"{MAX_ROWS:,} of 64"
            )
        said = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        if max(said, unpacked_bytes(data, metadata)) > MAX_UNPACKED_BYTES:
            raise InputError(
                f"the file unpacks to more than {MAX_UNPACKED_BYTES // 2**20} MiB, which no recording does"
            )
        header = (file.schema_arrow.metadata or {}).get(b"flashsvd")
        if header is None:
            raise InputError("the file is a table but no recording: a table of numbers cannot be read back")
        frame = _plain_table(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"the Parquet file is cut short or damaged ({type(error).__name__})") from None
    found = json.loads(header, parse_constant=_no_constant)
    if not isinstance(found, dict) or found.get("format") != "flashsvd-recording/1":
        raise InputError("the file is not a recording of this version: record it again")
    tables = {str(engine): rows for engine, rows in frame.groupby("engine", sort=False)}
    runs = [Imported(_comparison(found["comparison"], tables))]
    if found.get("curve"):
        runs.append(Imported(_curve(found["curve"])))
    return tuple(runs)


def _plain_table(file: pq.ParquetFile) -> pd.DataFrame:
    wanted = (*TIMELINE_COLUMNS, "engine")
    types = {field.name: field.type for field in file.schema_arrow}
    for name in wanted:
        kind = types.get(name)
        if kind is None or not (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
        ):
            raise InputError(f"the recording has no plain column {name!r}: record it again")
    table = file.read(columns=list(wanted), use_threads=False)
    return table.to_pandas(ignore_metadata=True)


def _comparison(data: Any, tables: Mapping[str, Any]) -> Comparison:
    check_types(Comparison, data, "run")
    if not data["runs"] or len(data["runs"]) > 64:
        raise InputError("a run holds 1 to 64 engines")
    result = comparison_from_json(
        data,
        lambda engine: _timeline(tables.get(engine), _layers(data["model"]["shape"]["layers"])),
    )
    check_common(result)
    result.plan.check_fits(result.model.shape)
    names = [run.engine for run in result.runs]
    if not all(_ENGINE.fullmatch(name) for name in names):
        raise InputError("an engine's name must be plain words")
    if len(set(names)) != len(names):
        raise InputError("a run holds an engine twice")
    for name in ("batch", "seq"):
        if not 1 <= getattr(result, name) <= _LARGEST_INPUT:
            raise InputError(f"{name} must be from 1 to {_LARGEST_INPUT}")
    if result.kept_model_parameters <= 0:
        raise InputError("the model has fewer parameters than its linears")
    for run in result.runs:
        took = run.latency_ms
        if not 0 <= took.p20 <= took.p50 <= took.p80:
            raise InputError(f"latencies of {run.engine[:40]!r} are not in order")
        if min(run.peak_activation_bytes, run.weight_bytes, run.repeats) < 0:
            raise InputError(f"bytes of {run.engine[:40]!r} must not be negative")
        if run.metric is not None:
            check_metric(run.metric)
    return result


def _curve(data: Any) -> Curve:
    check_types(Curve, data, "curve")
    result: Curve = from_json(Curve, data)
    check_common(result)
    if not 1 <= len(result.points) <= 10_000:
        raise InputError("a curve has 1 to 10000 points")
    for metric in (result.dense, *(point.metric for point in result.points)):
        check_metric(metric)
        if metric.name != result.dense.name:
            raise InputError("the points of a curve have other scores than the dense model")
    if not all(0 < point.keep <= 1.5 for point in result.points):
        raise InputError("a point of the curve keeps a share that no plan does")
    return result


def _layers(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0


def _timeline(table: Any, layers: int) -> pd.DataFrame:
    """A table of TIMELINE_COLUMNS from columns of a file; without rows where there is none."""
    if table is None:
        return pd.DataFrame({name: pd.Series(dtype=_dtype(name)) for name in TIMELINE_COLUMNS})
    if isinstance(table, Mapping):
        sizes = {len(table[name]) if isinstance(table.get(name), list) else -1 for name in TIMELINE_COLUMNS}
        if len(sizes) != 1 or sizes == {-1}:
            raise InputError("a timeline must give lists of one length for " + ", ".join(TIMELINE_COLUMNS))
        for name in TIMELINE_COLUMNS:
            _check_column(name, table[name])
    frame = pd.DataFrame({name: table[name] for name in TIMELINE_COLUMNS}).reset_index(drop=True)
    if len(frame) > MAX_ROWS:
        raise InputError(f"a timeline has {len(frame):,} rows, at most {MAX_ROWS:,} are read")
    for name in TIMELINE_COLUMNS:
        values = frame[name]
        if name in _WORDS:
            if not values.map(lambda text: isinstance(text, str) and len(text) <= LONGEST).all():
                raise InputError(f"{name} of a timeline must be short text")
        elif not np.isfinite(values.to_numpy(dtype=float)).all():
            raise InputError(f"{name} of a timeline must be numbers")
        elif np.abs(values.to_numpy(dtype=float)).max(initial=0.0) > LARGEST:
            raise InputError(f"{name} of a timeline is larger than any memory")
    frame = frame.astype({name: _dtype(name) for name in TIMELINE_COLUMNS})
    if not frame["category"].isin(_CATEGORIES).all():
        raise InputError(f"category of a timeline must be one of {', '.join(_CATEGORIES)}")
    if len(frame) and (frame["layer"].min() < -1 or frame["layer"].max() >= layers):
        raise InputError(f"layer of a timeline must be from -1 to {layers - 1}")
    if (frame["event"].diff().fillna(0) < 0).any():
        raise InputError("events of a timeline must be in order")
    return frame


def _dtype(name: str) -> Any:
    return str if name in _WORDS else np.float64 if name == "time_ms" else np.int64


def _check_column(name: str, values: list[Any]) -> None:
    kinds: tuple[type, ...] = (str,) if name in _WORDS else (int, float) if name == "time_ms" else (int,)
    if not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
        raise InputError(f"{name} of a timeline must be {'text' if name in _WORDS else 'numbers'}")
