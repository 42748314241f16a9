"""A run saved as one file that replays with no GPU: a Parquet table of all timelines, the rest in its header."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from flashsvd.errors import InputError
from flashsvd.models.shape import ModelShape
from flashsvd.paths import assets
from flashsvd.results import TIMELINE_COLUMNS, Comparison, Curve, from_json, to_json
from flashsvd.tables import Kind, read_table, write_table

_KIND = Kind("recording", "flashsvd-recording/1")


@dataclass(frozen=True)
class Recording:
    """One comparison with its timelines, and what goes with it. `command` repeats it."""

    comparison: Comparison
    curve: Curve | None
    sigmas: dict[tuple[int, str], NDArray[np.float64]] = field(repr=False, compare=False)
    command: str = ""


def bundled() -> list[Path]:
    """The recordings that ship with the workbench."""
    return sorted((assets() / "recordings").glob("*.parquet"))


def find(model: str) -> Path | None:
    """The bundled recording of a model, or None."""
    path = assets() / "recordings" / f"{model}.parquet"
    return path if path in bundled() else None


def write(path: Path, recording: Recording) -> None:
    """Writes one file, whole or not at all. Raises InputError where it cannot be written."""
    comparison = recording.comparison
    header = {
        "command": recording.command,
        "comparison": to_json(comparison),
        "curve": to_json(recording.curve),
        "sigmas": _pack(recording.sigmas),
    }
    tables = [run.timeline.assign(engine=run.engine) for run in comparison.runs]
    table = pa.Table.from_pandas(pd.concat(tables, ignore_index=True), preserve_index=False)
    write_table(path, _KIND, header, table)


def read(path: Path) -> Recording:
    """Reads a recording.

    Raises:
        InputError: not a recording, truncated, too large, or from another version.
    """
    header, table = read_table(path, _KIND)
    frame = table.to_pandas()
    data = header["comparison"]
    comparison = comparison_from_json(data, lambda engine: frame[frame["engine"] == engine])
    curve = header["curve"]
    return Recording(
        comparison,
        from_json(Curve, curve) if curve else None,
        _unpack(header["sigmas"], comparison.model.shape),
        header["command"],
    )


def comparison_from_json(data: Any, timeline: Any) -> Comparison:
    """A comparison from its JSON; `timeline(engine)` gives each run's table.

    Raises:
        InputError: fields are missing or of the wrong kind.
    """
    from flashsvd.results import EngineRun

    try:
        runs = tuple(
            from_json(
                EngineRun,
                run,
                timeline=timeline(run["engine"])[list(TIMELINE_COLUMNS)].reset_index(drop=True),
            )
            for run in data["runs"]
        )
        return from_json(Comparison, data, runs=runs)
    except (KeyError, TypeError) as error:
        raise InputError(f"the comparison in this file is malformed ({error!r}); record it again") from None


def _pack(sigmas: dict[tuple[int, str], NDArray[np.float64]]) -> list[dict[str, Any]]:
    return [
        {
            "layer": layer,
            "slot": slot,
            "units": len(values),
            "data": base64.b64encode(zlib.compress(values.astype("<f4").tobytes())).decode(),
        }
        for (layer, slot), values in sigmas.items()
    ]


def _unpack(rows: list[dict[str, Any]], shape: ModelShape) -> dict[tuple[int, str], NDArray[np.float64]]:
    sigmas = {}
    for row in rows:
        layer, name = int(row["layer"]), str(row["slot"])
        slot = shape.slot(layer, name)
        limit = 4 * slot.out_features * slot.in_features
        raw = zlib.decompressobj().decompress(base64.b64decode(row["data"]), limit)
        sigmas[layer, name] = np.frombuffer(raw, "<f4").astype(np.float64).reshape(int(row["units"]), -1)
    return sigmas
