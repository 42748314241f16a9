"""What a benchmark returns: one row per way of running, one point per setting, and when a ratio is refused."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import flashsvd
from flashsvd.bench.counts import Work
from flashsvd.measure.ceilings import Ceilings
from flashsvd.results import GateReport, Machine, Quantiles, to_json

FORMAT = "flashsvd-bench/1"


@dataclass(frozen=True)
class Row:
    """One way of running, measured or not.

    peak_bytes: the most that is alive beyond inputs and weights. flops and bytes are counted for this way's own
    algorithm (`flashsvd.bench.counts`); compute_share and bandwidth_share are the rates they give over the measured
    ceilings. speedup is the baseline's latency / this one's, peak_reduction the baseline's peak / this one's,
    runtime_speedup is over the dense weights in our own runtime; each is None where it is refused, and the reason
    stands beside it.

    Of a decoder, latency is that of one token of every sequence, and bytes are those that one has to read, so that
    bandwidth_share is the share of the bandwidth floor. kv_bytes: the cache as it is allocated. kernels: that the GPU
    ran for one token, launches: what the CPU launched for it, a whole CUDA graph counting once. agreement: share of
    greedy tokens that are the reference's, and differences, of the others, those that rounding does not excuse
    (`flashsvd.bench.decode_reference`).
    """

    name: str
    what: str
    status: Literal["measured", "failed", "left out"]
    reason: str | None = None
    latency_ms: Quantiles | None = None
    repeats: int = 0
    peak_bytes: int | None = None
    weight_bytes: int | None = None
    flops: int | None = None
    bytes: int | None = None
    tflops: float | None = None
    gbps: float | None = None
    compute_share: float | None = None
    bandwidth_share: float | None = None
    gate: GateReport | None = None
    speedup: float | None = None
    speedup_refused: str | None = None
    peak_reduction: float | None = None
    peak_refused: str | None = None
    runtime_speedup: float | None = None
    runtime_refused: str | None = None
    tokens_per_second: float | None = None
    kv_bytes: int | None = None
    kernels: int | None = None
    launches: int | None = None
    agreement: float | None = None
    differences: int | None = None

    @property
    def ceiling_share(self) -> float | None:
        """The larger of the two shares: how near to the ceiling that binds."""
        shares = [share for share in (self.compute_share, self.bandwidth_share) if share is not None]
        return max(shares, default=None)


@dataclass(frozen=True)
class Baselines:
    """Which rows latency and peak are held against. runtime: dense weights in our own runtime, where there is one."""

    latency: str
    peak: str
    runtime: str | None = None


@dataclass(frozen=True)
class Point:
    """One setting and its rows. `about` says in words what ran; `failure` is why there are no rows."""

    bench: str
    config: dict[str, Any]
    command: str
    created: str
    about: str
    baselines: Baselines
    rows: tuple[Row, ...]
    failure: str | None = None


def rates(work: Work, latency: Quantiles, dtype: str, ceilings: Ceilings) -> dict[str, Any]:
    """The fields of a row that follow from its work and its median latency."""
    seconds = latency.p50 / 1e3
    tflops, gbps = work.flops / seconds / 1e12, work.bytes / seconds / 1e9
    limit = ceilings.tflops(dtype)
    return {
        "flops": work.flops,
        "bytes": work.bytes,
        "tflops": tflops,
        "gbps": gbps,
        "compute_share": None if limit is None else tflops / limit,
        "bandwidth_share": gbps / 1e3 / ceilings.copy_tbps,
    }


def with_ratios(rows: tuple[Row, ...], baselines: Baselines) -> tuple[Row, ...]:
    """Every row with its ratios, or with why it has none: both rows of a ratio must be measured and correct."""
    by_name = {row.name: row for row in rows}
    return tuple(_with_ratios(row, by_name, baselines) for row in rows)


def _with_ratios(row: Row, rows: Mapping[str, Row], baselines: Baselines) -> Row:
    speedup, speed_refused = _speedup(row, rows, baselines.latency)
    own, own_refused = _speedup(row, rows, baselines.runtime) if baselines.runtime else (None, None)
    larger = rows.get(baselines.peak)
    peak_reduction, peak_refused = None, _refusal(row, larger, baselines.peak)
    if peak_refused is None and larger:
        if larger.peak_bytes and row.peak_bytes:
            peak_reduction = larger.peak_bytes / row.peak_bytes
        else:
            unknown = row if not row.peak_bytes else larger
            peak_refused = f"the peak of {unknown.name} could not be measured"
    return replace(
        row,
        speedup=speedup,
        speedup_refused=speed_refused,
        peak_reduction=peak_reduction,
        peak_refused=peak_refused,
        runtime_speedup=own,
        runtime_refused=own_refused,
    )


def _speedup(row: Row, rows: Mapping[str, Row], name: str) -> tuple[float | None, str | None]:
    """The latency of the row `name` over this one's, or why there is no ratio."""
    slower = rows.get(name)
    refused = _refusal(row, slower, name)
    if refused is None and slower and slower.latency_ms and row.latency_ms:
        return slower.latency_ms.p50 / row.latency_ms.p50, None
    return None, refused


def _refusal(row: Row, baseline: Row | None, name: str) -> str | None:
    if baseline is None:
        return f"{name} was not run"
    for one in (row, baseline):
        if one.status != "measured":
            return f"{one.name} {'failed' if one.status == 'failed' else 'was left out'}"
        if one.gate is None:
            return f"{one.name} was not checked"
        if not one.gate.passed:
            return wrong_in_words(one, one.gate)
    return None


def wrong_in_words(row: Row, gate: GateReport) -> str:
    """Why a row is wrong.

    >>> gate = GateReport(False, 1e-3, 1e-3, 2e-3, "lowrank, fp32")
    >>> wrong_in_words(Row("flash", "", "measured", gate=gate, differences=3), gate)
    'flash is wrong: 3 greedy tokens differ by more than rounding'
    """
    if gate.error <= gate.limit and row.differences:
        return f"{row.name} is wrong: {row.differences} greedy tokens differ by more than rounding"
    return f"{row.name} is wrong: error {gate.error:.1e}, at most {gate.limit:.1e} passes"


def command_of(bench: str, arguments: tuple[str, ...], options: Mapping[str, object]) -> str:
    """The command line that measures one point again; None and False are left out, True is a bare flag.

    >>> command_of("ffn", (), {"rows": 64, "rank-out": None, "dtype": "bf16"})
    'python -m flashsvd bench ffn --rows 64 --dtype bf16'
    """
    words = ["python", "-m", "flashsvd", "bench", bench, *arguments]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            words.append(str(value))
    return shlex.join(words)


def document(
    points: tuple[Point, ...], machine: Machine, ceilings: Ceilings, *, interrupted: bool
) -> dict[str, Any]:
    """One JSON object. Every row stands on its own: machine and versions, setting, command and date are in it."""
    found: dict[str, Any] = _strict(
        {
            "format": FORMAT,
            "interrupted": interrupted,
            "ceilings": to_json(ceilings),
            "rows": [entry for point in points for entry in _entries(point, machine)],
            "failures": [
                {"command": point.command, "config": point.config, "reason": point.failure}
                for point in points
                if point.failure is not None
            ],
        }
    )
    return found


def _strict(value: Any) -> Any:
    """Null for what is not finite: JSON has no word for the error of a wrong kernel that gives NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list) else value


def _entries(point: Point, machine: Machine) -> list[dict[str, Any]]:
    shared = {
        "bench": point.bench,
        "created": point.created,
        "machine": to_json(machine),
        "versions": versions(machine),
        "config": point.config,
        "about": point.about,
        "command": point.command,
        "baselines": to_json(point.baselines),
    }
    return [{**shared, **to_json(row), "ceiling_share": row.ceiling_share} for row in point.rows]


def versions(machine: Machine) -> dict[str, str | None]:
    """Versions of what a number depends on."""
    return {
        "flashsvd": flashsvd.__version__,
        "python": machine.python,
        "torch": machine.torch,
        "triton": machine.triton,
        "transformers": machine.transformers,
        "driver": machine.driver,
    }
