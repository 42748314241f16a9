"""Measured points of whole models in one Parquet file: a row for every way of running, and in the header where each
point was measured, when, with what, and the command that measures it again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from flashsvd.bench.rows import Point, Row, versions
from flashsvd.errors import InputError
from flashsvd.measure.ceilings import Ceilings
from flashsvd.paths import assets
from flashsvd.results import GateReport, Machine, Quantiles, from_json, to_json
from flashsvd.tables import Kind, read_table, write_table

_KIND = Kind("bench recording", "flashsvd-bench-recording/1")

# The first eight repeat the header for those who read the table alone; the rest is all of a `Row`.
_SCHEMA = pa.schema(
    [
        ("point", pa.int32()),
        ("model", pa.string()),
        ("batch", pa.int64()),
        ("seq", pa.int64()),
        ("dtype", pa.string()),
        ("ranks", pa.string()),
        ("machine", pa.string()),
        ("created", pa.string()),
        ("name", pa.string()),
        ("what", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("p20_ms", pa.float64()),
        ("p50_ms", pa.float64()),
        ("p80_ms", pa.float64()),
        ("repeats", pa.int64()),
        ("peak_bytes", pa.int64()),
        ("weight_bytes", pa.int64()),
        ("flops", pa.int64()),
        ("bytes", pa.int64()),
        ("tflops", pa.float64()),
        ("gbps", pa.float64()),
        ("compute_share", pa.float64()),
        ("bandwidth_share", pa.float64()),
        ("ceiling_share", pa.float64()),
        ("gate_passed", pa.bool_()),
        ("gate_error", pa.float64()),
        ("gate_baseline_error", pa.float64()),
        ("gate_limit", pa.float64()),
        ("gate_reference", pa.string()),
        ("speedup", pa.float64()),
        ("speedup_refused", pa.string()),
        ("peak_reduction", pa.float64()),
        ("peak_refused", pa.string()),
    ]
)
_LATER = pa.schema(
    [
        ("bench", pa.string()),
        ("context", pa.int64()),
        ("runtime_speedup", pa.float64()),
        ("runtime_refused", pa.string()),
        ("tokens_per_second", pa.float64()),
        ("kv_bytes", pa.int64()),
        ("kernels", pa.int64()),
        ("launches", pa.int64()),
        ("agreement", pa.float64()),
        ("differences", pa.int64()),
    ]
)
"""Columns that files from before decoders were measured lack. The first two repeat the header."""

_HOW = ("engines", "repeats", "budget", "seed", "device", "compile_backend", "method", "new_tokens")
"""Of a setting, what says how it was measured, not what."""


@dataclass(frozen=True)
class Place:
    """Where points are measured: the machine, its ceilings in the same run, and versions by name."""

    machine: Machine
    ceilings: Ceilings
    versions: dict[str, str | None]

    @classmethod
    def of(cls, machine: Machine, ceilings: Ceilings) -> Place:
        """With the versions that are installed now."""
        return cls(machine, ceilings, versions(machine))


@dataclass(frozen=True)
class SavedPoint:
    """A point and where it was measured."""

    point: Point
    place: Place

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for points of the same model, shape, dtype and ranks on the same kind of machine."""
        config = self.point.config
        what = (f"{name}={config[name]}" for name in sorted(config) if name not in _HOW)
        return self.place.machine.label, self.point.bench, *what


def bundled_benches() -> list[Path]:
    """The bench recordings that ship; the app's own recordings are in the folder above."""
    return sorted((assets() / "recordings" / "bench").glob("*.parquet"))


def ranks_in_words(config: Mapping[str, Any]) -> str:
    """How a point's plan is written in tables.

    >>> ranks_in_words({"ranks": "40,240,240"}), ranks_in_words({"keep": 0.5, "per_head": False})
    ('(40,240,240)', 'keep 0.5, whole')
    """
    plan = next(
        (f"{name} {config[name]}" for name in ("keep", "rules", "plan") if name in config),
        f"({config.get('ranks')})",
    )
    return plan if config.get("per_head", True) else f"{plan}, whole"


def check_target(path: Path, *, append: bool) -> None:
    """Raises InputError where points could not be saved to `path`, before minutes are spent on measuring them."""
    if path.exists():
        if not append:
            raise InputError(
                f"{path} is there already: add --append to keep its points, or name another file"
            )
        read_points(path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {path}: {folder} is not a folder that can be written to")


def add_point(path: Path, new: SavedPoint) -> None:
    """Adds a point to a file, which is made where it is missing; an equal point is replaced, but a measured one
    never by one that failed.

    Raises:
        InputError: the file is no bench recording, or cannot be written.
    """
    write_points(path, merged(read_points(path) if path.exists() else (), new))


def merged(points: Sequence[SavedPoint], new: SavedPoint) -> tuple[SavedPoint, ...]:
    """The points with a new one, in the place of its equal or at the end."""
    places = {point.identity: index for index, point in enumerate(points)}
    index = places.get(new.identity)
    if index is None:
        return (*points, new)
    if new.point.failure is not None and points[index].point.failure is None:
        return tuple(points)
    return (*points[:index], new, *points[index + 1 :])


def write_points(path: Path, points: Sequence[SavedPoint]) -> None:
    """Writes a file, whole or not at all. Raises InputError where it cannot be written."""
    rows = [_entry(index, saved, row) for index, saved in enumerate(points) for row in saved.point.rows]
    header = [{**to_json(replace(saved.point, rows=())), "place": to_json(saved.place)} for saved in points]
    write_table(path, _KIND, {"points": header}, pa.Table.from_pylist(rows, schema=_whole()))


def read_points(path: Path) -> tuple[SavedPoint, ...]:
    """Reads a file back.

    Raises:
        InputError: not a bench recording, truncated, too large, from another version, or with other columns.
    """
    header, table = read_table(path, _KIND)
    missing = [name for name in _SCHEMA.names if name not in table.column_names]
    if missing:
        raise InputError(f"{path.name} lacks the columns {', '.join(missing)}; record it again")
    try:
        for name in set(_LATER.names) - set(table.column_names):
            table = table.append_column(name, pa.nulls(len(table), _LATER.field(name).type))
        entries = table.select(_whole().names).cast(_whole()).to_pylist()
        return tuple(
            SavedPoint(
                from_json(
                    Point, data, rows=tuple(_row(entry) for entry in entries if entry["point"] == index)
                ),
                from_json(Place, data["place"]),
            )
            for index, data in enumerate(header["points"])
        )
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path.name} is malformed ({_first_line(error)}); record it again") from None


def _whole() -> pa.Schema:
    return pa.schema([*_SCHEMA, *_LATER])


def _entry(index: int, saved: SavedPoint, row: Row) -> dict[str, Any]:
    point, data = saved.point, to_json(row)
    latency, gate = data.pop("latency_ms") or {}, data.pop("gate") or {}
    return {
        **{name: point.config.get(name) for name in ("model", "batch", "seq", "context", "dtype")},
        "bench": point.bench,
        "point": index,
        "ranks": ranks_in_words(point.config),
        "machine": saved.place.machine.label,
        "created": point.created,
        "ceiling_share": row.ceiling_share,
        **data,
        **{f"{name}_ms": value for name, value in latency.items()},
        **{f"gate_{name}": value for name, value in gate.items()},
    }


def _row(entry: Mapping[str, Any]) -> Row:
    plain = {field.name: entry[field.name] for field in fields(Row) if field.name in entry}
    timed, judged = entry["p50_ms"] is not None, entry["gate_passed"] is not None
    return Row(
        **plain,
        latency_ms=Quantiles(**{name: entry[f"{name}_ms"] for name in _names(Quantiles)}) if timed else None,
        gate=GateReport(**{name: entry[f"gate_{name}"] for name in _names(GateReport)}) if judged else None,
    )


def _names(kind: type[Quantiles] | type[GateReport]) -> list[str]:
    return [field.name for field in fields(kind)]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
