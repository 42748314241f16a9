"""Kept runs as files: a table for spreadsheets and notebooks, or JSON that holds all and can be imported again."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from flashsvd.results import TIMELINE_COLUMNS, Comparison, Curve, Metric, to_json
from flashsvd.runs.rows import RunRow
from flashsvd.store import RunStore

FORMAT = "flashsvd-runs/1"


@dataclass(frozen=True)
class Kept:
    """A run with its line in the list."""

    row: RunRow
    result: Comparison | Curve


def read_kept(store: RunStore, rows: Sequence[RunRow]) -> tuple[Kept, ...]:
    """The runs of these lines. Raises InputError where one is gone or cannot be read."""
    return tuple(Kept(row, store.get(row.id)) for row in rows)


def table(kept: Sequence[Kept]) -> pd.DataFrame:
    """One row per engine of every comparison and per point of every curve, units in the names of the columns."""
    rows: list[dict[str, Any]] = []
    for item in kept:
        about = _about(item)
        if isinstance(item.result, Comparison):
            rows += [about | _engine(run) for run in item.result.runs]
        else:
            rows += [
                about
                | {"keep": point.keep, "kept_parameters": point.kept_parameters, "plan": point.plan}
                | _score(point.metric)
                for point in item.result.points
            ]
    empty = dict.fromkeys(_COLUMNS)
    return pd.DataFrame([empty | row for row in rows], columns=list(_COLUMNS)).convert_dtypes()


_COLUMNS = (
    "run",
    "name",
    "pinned",
    "kind",
    "created",
    "model",
    "method",
    "keep",
    "kept_parameters",
    "parameters",
    "batch",
    "seq",
    "dtype",
    "seed",
    "engine",
    "backend",
    "peak_activation_bytes",
    "weight_bytes",
    "latency_p20_ms",
    "latency_p50_ms",
    "latency_p80_ms",
    "repeats",
    "metric",
    "score",
    "score_low",
    "score_high",
    "samples",
    "error_vs_lowrank",
    "check_passed",
    "machine",
    "cpu",
    "torch",
    "triton",
    "driver",
    "plan",
    "digest",
)


def _about(item: Kept) -> dict[str, Any]:
    row, result = item.row, item.result
    about = {
        "run": row.id,
        "name": row.name,
        "pinned": row.pinned,
        "kind": row.kind,
        "created": result.created,
        "model": result.model.name,
        "method": result.method,
        "parameters": result.model.parameters,
        "dtype": result.dtype,
        "seed": result.seed,
        "machine": result.machine.label,
        "cpu": result.machine.cpu,
        "torch": result.machine.torch,
        "triton": result.machine.triton,
        "driver": result.machine.driver,
        "digest": row.digest,
    }
    if isinstance(result, Comparison):
        about |= {
            "keep": result.keep,
            "kept_parameters": result.plan.kept_parameters,
            "batch": result.batch,
            "seq": result.seq,
            "plan": result.plan.to_text(),
        }
    return about


def _engine(run: Any) -> dict[str, Any]:
    return {
        "engine": run.engine,
        "backend": run.backend,
        "peak_activation_bytes": run.peak_activation_bytes,
        "weight_bytes": run.weight_bytes,
        "latency_p20_ms": run.latency_ms.p20,
        "latency_p50_ms": run.latency_ms.p50,
        "latency_p80_ms": run.latency_ms.p80,
        "repeats": run.repeats,
        "error_vs_lowrank": run.error_vs_lowrank,
        "check_passed": run.gate.passed if run.gate else None,
    } | _score(run.metric)


def _score(metric: Metric | None) -> dict[str, Any]:
    if metric is None:
        return {}
    return {
        "metric": metric.name,
        "score": metric.value,
        "score_low": metric.low,
        "score_high": metric.high,
        "samples": metric.n,
    }


def to_csv(kept: Sequence[Kept]) -> bytes:
    """`table` as CSV in UTF-8. A text that a spreadsheet would take for a formula gets a quote in front."""
    frame = table(kept)
    for name in frame.columns:
        frame[name] = frame[name].map(_harmless)
    return frame.to_csv(index=False).encode()


def _harmless(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def to_parquet(kept: Sequence[Kept]) -> bytes:
    """`table` as Parquet."""
    buffer = io.BytesIO()
    table(kept).to_parquet(buffer, compression="zstd", index=False)
    return buffer.getvalue()


def to_file(kept: Sequence[Kept]) -> bytes:
    """All of every run as JSON, timelines included; `flashsvd.runs.importing` reads it back."""
    runs = [
        {
            "kind": item.row.kind,
            "name": item.row.name,
            "result": to_json(item.result),
            "timelines": _timelines(item.result),
        }
        for item in kept
    ]
    return json.dumps({"format": FORMAT, "runs": runs}, separators=(",", ":")).encode()


def _timelines(result: Comparison | Curve) -> dict[str, dict[str, list[Any]]]:
    if isinstance(result, Curve):
        return {}
    return {
        run.engine: {name: run.timeline[name].tolist() for name in TIMELINE_COLUMNS}
        for run in result.runs
        if not run.timeline.empty
    }
