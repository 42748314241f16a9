"""Local files of rows: CSV, JSON, JSON lines and Parquet, each read as named columns. Nothing in them is run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashsvd.errors import InputError

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")

Columns = Mapping[str, Sequence[Any]]
"""A table: values by column name, all of one length; None where there is none."""


def read_table(path: Path) -> Columns:
    """A file's columns.

    Words of a CSV stay words, "NA" and "null" among them; a column of nothing but numbers is read as numbers.

    Raises:
        InputError: missing, empty, of another suffix, or not what its suffix says.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, got {path.suffix!r}")
    if not path.is_file():
        raise InputError(f"{path} is not there: check the path")
    try:
        columns = _READERS[path.suffix](path)
    except (OSError, ValueError) as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{path} cannot be read as {path.suffix.removeprefix('.')} ({first})") from None
    if not columns or not len(next(iter(columns.values()))):
        raise InputError(f"{path} is empty: expected at least one row")
    return columns


def _csv(path: Path) -> Columns:
    import pandas as pd

    if not path.read_bytes().strip():
        return {}
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    return {str(name): _numbers(frame[name].tolist()) for name in frame.columns}


def _numbers(values: list[str]) -> list[Any]:
    """Whole numbers, or floats, where every value is one; "nan" is one, an empty field is None among numbers."""
    for number in (int, float):
        try:
            found = [None if value == "" else number(value) for value in values]
        except ValueError:
            continue
        # int reads "1_0" and float reads "infinity": words for anybody but Python.
        if not any("_" in value for value in values) and any(value is not None for value in found):
            return found
    return values


def _json(path: Path) -> Columns:
    text = path.read_text(encoding="utf-8")
    try:
        return _of_rows(json.loads(text) if text.strip() else [])
    except json.JSONDecodeError:
        return _json_lines(path)


def _json_lines(path: Path) -> Columns:
    lines = path.read_text(encoding="utf-8").split("\n")
    return _of_rows([json.loads(line) for line in lines if line.strip()])


def _of_rows(rows: Any) -> Columns:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects, or one object a line")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet(path: Path) -> Columns:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None
    return {name: table.column(name).to_pylist() for name in table.column_names}


_READERS = {".csv": _csv, ".json": _json, ".jsonl": _json_lines, ".parquet": _parquet}
