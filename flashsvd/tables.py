"""One Parquet table with a JSON header in one file: written whole or not at all, read back only if it is that kind."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flashsvd.errors import InputError

_HEADER = b"flashsvd"
_LIMIT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Kind:
    """A kind of file: what people call it, and the format tag of this version."""

    name: str
    format: str


def write_table(path: Path, kind: Kind, header: Mapping[str, Any], table: pa.Table) -> None:
    """Writes under a temporary name in the same folder, then renames: `path` never holds half a file.

    Raises:
        InputError: the folder cannot be made or written to, or `path` is a folder.
    """
    whole = table.replace_schema_metadata({_HEADER: json.dumps({"format": kind.format, **header}).encode()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, so that the file itself gets the rights that any new file would.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            part = Path(folder) / path.name
            pq.write_table(whole, part, compression="zstd")
            part.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def read_table(path: Path, kind: Kind) -> tuple[dict[str, Any], pa.Table]:
    """The header and the table.

    Raises:
        InputError: no file there, not of this kind, truncated, too large, or from another version.
    """
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            raise InputError(f"{path.name} is larger than a {kind.name} may be ({_LIMIT_BYTES // 2**20} MiB)")
        table = pq.read_table(path)
        header = json.loads((table.schema.metadata or {})[_HEADER])
    except FileNotFoundError:
        raise InputError(f"{path.name} is not there; expected a {kind.name} at {path}") from None
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name} is not a {kind.name} or is cut short; record it again") from None
    found = header.get("format") if isinstance(header, dict) else None
    if found != kind.format:
        raise InputError(
            f"{path.name} has format {found!r}, expected {kind.format!r} (a {kind.name}); record it again"
        )
    return header, table
