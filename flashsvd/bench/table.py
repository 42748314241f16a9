"""A point as lines of text: a table, and under it why a row failed or may not claim a ratio."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flashsvd.bench.rows import Point, Row
from flashsvd.errors import format_bytes
from flashsvd.measure.ceilings import Ceilings
from flashsvd.results import GateReport, Machine, Quantiles

_NONE = "—"


def machine_line(machine: Machine) -> str:
    """The machine and what a number depends on, in one line."""
    return f"{machine.label}, torch {machine.torch}, triton {machine.triton}"


def ceiling_line(ceilings: Ceilings) -> str:
    """The measured ceilings in one line."""
    rates = [
        f"{name} {rate:.3g} TFLOP/s"
        for name in ("bf16", "fp16", "fp32")
        if (rate := ceilings.tflops(name)) is not None
    ]
    return (
        f"ceilings measured now: matrix product of {ceilings.matmul_size}³ {', '.join(rates)} (fp32 precision "
        f"{ceilings.fp32_precision}), copy {ceilings.copy_tbps:.3g} TB/s"
    )


def point_lines(point: Point) -> list[str]:
    """The point's setting, its rows, and notes."""
    words = ", ".join(f"{name} {_word(value)}" for name, value in point.config.items() if value is not None)
    lines = [f"{point.bench}: {words}"]
    if point.failure is not None:
        return [*lines, f"  failed: {point.failure}"]
    columns = {**_TIMES, **_COLUMNS.get(point.bench, _COUNTS), **_RATIOS}
    if point.baselines.runtime:
        columns |= _RUNTIME
    headings = ("run", *columns)
    cells = [headings, *(_cells(row, columns) for row in point.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines += [f"  {point.about}"] if point.about else []
    for row in cells:
        padded = [row[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(padded).rstrip())
    return lines + _notes(point)


Column = Callable[[Row], str]

_TIMES: Mapping[str, Column] = {
    "ms": lambda row: "" if row.latency_ms is None else _milliseconds(row.latency_ms.p50),
    "p20-p80": lambda row: "" if row.latency_ms is None else _span(row.latency_ms),
}
_COUNTS: Mapping[str, Column] = {
    "peak": lambda row: _bytes(row.peak_bytes),
    "weights": lambda row: _bytes(row.weight_bytes),
    "TFLOP/s": lambda row: _number(row.tflops),
    "GB/s": lambda row: _number(row.gbps),
    "ceiling": lambda row: _share(row.ceiling_share),
    "error": lambda row: _error(row.gate),
}
_LAUNCHES: Mapping[str, Column] = {
    "launches": lambda row: _count(row.launches),
    "kernels": lambda row: _count(row.kernels),
}
_DECODERS: Mapping[str, Column] = {
    "tokens/s": lambda row: _number(row.tokens_per_second),
    "peak": lambda row: _bytes(row.peak_bytes),
    "weights": lambda row: _bytes(row.weight_bytes),
    "cache": lambda row: _bytes(row.kv_bytes),
    "TFLOP/s": lambda row: _number(row.tflops),
    "bandwidth": lambda row: _share(row.bandwidth_share),
    "error": lambda row: _error(row.gate),
    "greedy": lambda row: _share(row.agreement),
}
_COLUMNS = {"decode": {**_LAUNCHES, **_DECODERS}, "prefill": _DECODERS}
_RATIOS: Mapping[str, Column] = {
    "speed-up": lambda row: _ratio(row.speedup),
    "less peak": lambda row: _ratio(row.peak_reduction),
}
_RUNTIME: Mapping[str, Column] = {"over own dense": lambda row: _ratio(row.runtime_speedup)}


def _cells(row: Row, columns: Mapping[str, Column]) -> tuple[str, ...]:
    if row.latency_ms is None:
        return (row.name, row.status, *(_NONE,) * (len(columns) - 1))
    return (row.name, *(column(row) for column in columns.values()))


def _notes(point: Point) -> list[str]:
    runtime = next((row for row in point.rows if row.name == point.baselines.runtime), None)
    own = f", own dense is {runtime.name}" if runtime else ""
    lines = [f"  speed-up over {point.baselines.latency}, less peak than {point.baselines.peak}{own}"]
    for row in point.rows:
        if row.status != "measured":
            lines.append(f"  {row.name}: {row.status}: {row.reason}")
            continue
        lines.append(f"  {row.name}: {row.what}")
        refused = {"speed-up": row.speedup_refused, "peak ratio": row.peak_refused}
        if runtime and runtime.status == "measured":
            refused["speed-up over own dense"] = row.runtime_refused
        reasons = set(refused.values())
        if None not in reasons and len(reasons) == 1:
            lines.append(f"  {row.name}: no ratio: {row.speedup_refused}")
            continue
        lines += [f"  {row.name}: no {ratio}: {reason}" for ratio, reason in refused.items() if reason]
    return lines


def _word(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:.3f}" if value < 10 else f"{value:.2f}"


def _span(latency: Quantiles) -> str:
    return f"{_milliseconds(latency.p20)}-{_milliseconds(latency.p80)}"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _count(value: int | None) -> str:
    return _NONE if value is None else str(value)


def _bytes(value: int | None) -> str:
    return _NONE if value is None else format_bytes(value)


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"


def _ratio(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}x"


def _error(gate: GateReport | None) -> str:
    return _NONE if gate is None else f"{gate.error:.1e} {'ok' if gate.passed else 'WRONG'}"
