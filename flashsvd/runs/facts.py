"""The few numbers by which a list of runs is filtered and sorted, read from a run's JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashsvd.results import Comparison, Metric

_ABOUT = ("flash", "lowrank", "dense")
"""Whose numbers stand for a comparison: the first of these that it ran."""


@dataclass(frozen=True)
class Facts:
    """A run in one line. The numbers are of `engine`; those of a curve are None. `digest` names its content."""

    digest: str
    engine: str = ""
    batch: int | None = None
    seq: int | None = None
    dtype: str = ""
    peak_bytes: int | None = None
    median_ms: float | None = None
    dense_peak_bytes: int | None = None
    dense_ms: float | None = None
    metric: str = ""
    score: float | None = None
    lower_is_better: bool = False
    samples: int | None = None
    checked: bool | None = None
    points: int | None = None


def facts_of(kind: str, data: Mapping[str, Any]) -> Facts:
    """Facts of a "compare" or "curve" from its JSON (`flashsvd.results.to_json`), which may be of an older version:
    what is not there is None.
    """
    digest = digest_of(data)
    dtype = str(data.get("dtype") or "")
    if kind == "curve":
        metric = _object(data.get("dense"))
        return Facts(
            digest,
            dtype=dtype,
            metric=str(metric.get("name") or ""),
            samples=_whole(metric.get("n")),
            points=len(_list(data.get("points"))),
        )
    runs = {str(run.get("engine")): run for run in map(_object, _list(data.get("runs")))}
    engine = main_engine(tuple(runs))
    mine, dense = runs.get(engine, {}), runs.get("dense", {})
    metric, gate = _object(mine.get("metric")), _object(mine.get("gate"))
    name, score = str(metric.get("name") or ""), _number(metric.get("value"))
    return Facts(
        digest,
        engine,
        _whole(data.get("batch")),
        _whole(data.get("seq")),
        dtype,
        _whole(mine.get("peak_activation_bytes")),
        _number(_object(mine.get("latency_ms")).get("p50")),
        _whole(dense.get("peak_activation_bytes")),
        _number(_object(dense.get("latency_ms")).get("p50")),
        name,
        score,
        score is not None and Metric(name, score, 0, 0.0, 0.0, None, 0).lower_is_better,
        _whole(metric.get("n")),
        bool(gate["passed"]) if "passed" in gate else None,
    )


def main_engine(engines: Sequence[str]) -> str:
    """The engine that a run is about.

    >>> main_engine(("dense", "lowrank")), main_engine(("dense_compiled",)), main_engine(())
    ('lowrank', 'dense_compiled', '')
    """
    return next((name for name in _ABOUT if name in engines), engines[-1] if engines else "")


def engines_of(result: Comparison) -> tuple[str, ...]:
    """The engines that a comparison ran, in its order."""
    return tuple(run.engine for run in result.runs)


def digest_of(data: Mapping[str, Any]) -> str:
    """16 hex digits that are equal for equal results, wherever they are kept, whichever version wrote them: fields that
    are None count as not there, as do those that a later version adds.
    """
    return hashlib.sha256(json.dumps(_without_none(data), sort_keys=True).encode()).hexdigest()[:16]


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
