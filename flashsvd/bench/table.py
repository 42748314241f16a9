"""A point as lines of text: a table, and under it why a row failed or may not claim a ratio."""

from __future__ import annotations

from flashsvd.bench.rows import Point, Row
from flashsvd.errors import format_bytes
from flashsvd.measure.ceilings import Ceilings
from flashsvd.results import Machine

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
    headings = (
        "run",
        "ms",
        "p20-p80",
        "peak",
        "weights",
        "TFLOP/s",
        "GB/s",
        "ceiling",
        "error",
        "speed-up",
        "less peak",
    )
    cells = [headings, *(_cells(row) for row in point.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines += [f"  {point.about}"] if point.about else []
    for row in cells:
        padded = [row[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(padded).rstrip())
    return lines + _notes(point)


def _cells(row: Row) -> tuple[str, ...]:
    if row.latency_ms is None:
        return (row.name, row.status, *(_NONE,) * 9)
    latency, gate = row.latency_ms, row.gate
    verdict = _NONE if gate is None else f"{gate.error:.1e} {'ok' if gate.passed else 'WRONG'}"
    return (
        row.name,
        _milliseconds(latency.p50),
        f"{_milliseconds(latency.p20)}-{_milliseconds(latency.p80)}",
        _NONE if row.peak_bytes is None else format_bytes(row.peak_bytes),
        _NONE if row.weight_bytes is None else format_bytes(row.weight_bytes),
        _number(row.tflops),
        _number(row.gbps),
        _NONE if row.ceiling_share is None else f"{row.ceiling_share:.0%}",
        verdict,
        _NONE if row.speedup is None else f"{row.speedup:.2f}x",
        _NONE if row.peak_reduction is None else f"{row.peak_reduction:.2f}x",
    )


def _notes(point: Point) -> list[str]:
    lines = [f"  speed-up over {point.baselines.latency}, less peak than {point.baselines.peak}"]
    for row in point.rows:
        if row.status != "measured":
            lines.append(f"  {row.name}: {row.status}: {row.reason}")
            continue
        lines.append(f"  {row.name}: {row.what}")
        if row.speedup_refused and row.speedup_refused == row.peak_refused:
            lines.append(f"  {row.name}: no ratio: {row.speedup_refused}")
            continue
        refused = (("speed-up", row.speedup_refused), ("peak ratio", row.peak_refused))
        lines += [f"  {row.name}: no {ratio}: {reason}" for ratio, reason in refused if reason]
    return lines


def _word(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:.3f}" if value < 10 else f"{value:.2f}"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
