"""Two runs side by side: numbers with differences, ranks where the plans differ, memory by layer and op."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from flashsvd.errors import format_bytes
from flashsvd.ranks import Rank, RankPlan
from flashsvd.results import Comparison, EngineRun, Machine, Metric, Quantiles

ALIGNED_COLUMNS = ("layer", "op", "a_bytes", "b_bytes", "difference_bytes")
"""One row per layer (from 1; 0 is before and after the blocks) and op: the most that was live beyond the weights
while the op made or freed memory there. None where a run has no such op.
"""


_SAME = 0.03
"""Medians of two runs differ by as much on a busy machine."""


@dataclass(frozen=True)
class NumberRow:
    """One number of two runs. `difference` is b - a, None where the two cannot be compared.

    unit: "bytes", "ms", "parameters", "%" (of a share from 0 to 1), "" for a plain number.
    lower_is_better: None where neither end is better. main: one of the few that a glance should show.
    """

    label: str
    unit: str
    a: float | None
    b: float | None
    difference: float | None
    lower_is_better: bool | None = True
    within_noise: bool = False
    main: bool = False

    @property
    def tone(self) -> str:
        """What the difference means: "good", "bad" or "plain"; plain where it is no larger than the noise."""
        if not self.difference or self.lower_is_better is None or self.within_noise:
            return "plain"
        return "good" if (self.difference < 0) == self.lower_is_better else "bad"

    def words(self) -> tuple[str, str, str]:
        """a, b and the difference as people read them."""
        return shown(self.a, self.unit), shown(self.b, self.unit), _changed(self)


def shown(value: float | None, unit: str) -> str:
    """A number with its unit.

    >>> shown(2.5 * 2**20, "bytes"), shown(4.31, "ms"), shown(0.4963, "%"), shown(54_800_000, "parameters")
    ('2.5 MiB', '4.31 ms', '49.6 %', '54.80 M')
    >>> shown(None, "ms")
    '—'
    """
    if value is None:
        return "—"
    if unit == "bytes":
        return format_bytes(value)
    if unit == "ms":
        return f"{value:.2f} ms" if abs(value) < 10 else f"{value:,.1f} ms"
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit == "parameters":
        for size, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
            if abs(value) >= size:
                return f"{value / size:.2f}{name}"
        return f"{value:.0f}"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.3g}"


def _changed(row: NumberRow) -> str:
    if row.difference is None:
        return "—"
    if row.difference == 0:
        return "same"
    sign = "+" if row.difference > 0 else "−"
    size = abs(row.difference)
    if row.unit == "%":
        return f"{sign}{100 * size:.1f} points"
    text = f"{sign}{shown(size, row.unit)}"
    if row.a and row.b and row.unit in ("bytes", "ms", "parameters"):
        ratio = row.b / row.a
        text += f" ({ratio:.2f}x)"
    return text


def incomparable(a: Comparison, b: Comparison) -> str | None:
    """One line where measured numbers of the two say nothing about each other; None where they do."""
    pairs = {
        "model": (a.model.name, b.model.name),
        "machine": _machines(a.machine, b.machine),
        "batch": (f"{a.batch} x {a.seq}", f"{b.batch} x {b.seq}"),
        "precision": (a.dtype, b.dtype),
    }
    differ = [f"{name} ({one} / {other})" for name, (one, other) in pairs.items() if one != other]
    if not differ:
        return None
    whole = differ[0] if len(differ) == 1 else ", ".join(differ[:-1]) + " and " + differ[-1]
    return f"Not comparable: A and B differ in {whole}."


def _machines(a: Machine, b: Machine) -> tuple[str, str]:
    """What tells two machines apart, in words that differ where they do."""
    one, other = (
        machine.label if machine.accelerator else f"{machine.cpu}, {machine.cores} cores"
        for machine in (a, b)
    )
    return (one, other) if one == other or a.label == b.label else (a.label, b.label)


def shared_engines(a: Comparison, b: Comparison) -> tuple[str, ...]:
    """Engines that both ran, in the order of the first."""
    other = {run.engine for run in b.runs}
    return tuple(run.engine for run in a.runs if run.engine in other)


def numbers(a: Comparison, b: Comparison, engine: str) -> tuple[NumberRow, ...]:
    """The table of one engine that both ran. What was measured has a difference only where both were measured alike,
    latencies only where both runs passed their correctness check (the dense run needs none).

    Raises:
        ValueError: one of the two did not run the engine.
    """
    mine, other = a.run(engine), b.run(engine)
    if mine is None or other is None:
        raise ValueError(f"both runs must hold {engine}")
    alike = incomparable(a, b) is None
    same_model = a.model.name == b.model.name
    right = alike and all(_checked(run) for run in (mine, other))
    rows = [
        _row("Keep, of factored weights", "%", a.keep, b.keep, same_model, None, main=True),
        _row("Parameters", "parameters", a.kept_model_parameters, b.kept_model_parameters, same_model),
        _row(
            "Peak activation memory",
            "bytes",
            mine.peak_activation_bytes,
            other.peak_activation_bytes,
            alike,
            main=True,
        ),
        _row(
            "Weights of the run",
            "bytes",
            mine.weight_bytes,
            other.weight_bytes,
            same_model and a.dtype == b.dtype,
        ),
        *(
            _row(
                f"Latency, {'median' if name == 'p50' else name}",
                "ms",
                getattr(mine.latency_ms, name),
                getattr(other.latency_ms, name),
                right,
                within_noise=_too_close(mine.latency_ms, other.latency_ms),
                main=name == "p50",
            )
            for name in ("p20", "p50", "p80")
        ),
        *_scores(mine.metric, other.metric, same_model),
        _row("Error against lowrank", "", mine.error_vs_lowrank, other.error_vs_lowrank, False),
        _row("Repeats", "", mine.repeats, other.repeats, False, None),
    ]
    return tuple(row for row in rows if row.a is not None or row.b is not None)


def _checked(run: EngineRun) -> bool:
    return run.engine.startswith("dense") or (run.gate is not None and run.gate.passed)


def _row(
    label: str,
    unit: str,
    a: float | None,
    b: float | None,
    comparable: bool,
    lower_is_better: bool | None = True,
    *,
    within_noise: bool = False,
    main: bool = False,
) -> NumberRow:
    difference = b - a if comparable and a is not None and b is not None else None
    return NumberRow(label, unit, a, b, difference, lower_is_better, within_noise, main)


def _too_close(a: Quantiles, b: Quantiles) -> bool:
    """Whether each median lies among the other run's repeats, or the two are within 3 %."""
    among = a.p20 <= b.p50 <= a.p80 and b.p20 <= a.p50 <= b.p80
    return among or abs(b.p50 - a.p50) <= _SAME * a.p50


def _scores(a: Metric | None, b: Metric | None, same_model: bool) -> list[NumberRow]:
    if a is None and b is None:
        return []
    names = list(dict.fromkeys(metric.name for metric in (a, b) if metric is not None))
    rows = []
    for name in names:
        one, other = (metric if metric is not None and metric.name == name else None for metric in (a, b))
        some = one or other
        assert some is not None
        unit = "%" if some.unit == "%" else ""
        label = name.capitalize()
        alike = (
            same_model
            and one is not None
            and other is not None
            and (one.n, one.seed) == (other.n, other.seed)
        )
        values = (one.value if one else None, other.value if other else None)
        noise = one is not None and other is not None and one.low <= other.value <= one.high
        rows.append(_row(label, unit, *values, alike, some.lower_is_better, within_noise=noise, main=True))
        for end in ("low", "high"):
            ends = (getattr(one, end) if one else None, getattr(other, end) if other else None)
            rows.append(_row(f"{label}, 95 % {end}", unit, *ends, False, None))
        rows.append(
            _row(
                f"Scored {some.counted}", "", one.n if one else None, other.n if other else None, False, None
            )
        )
    return rows


@dataclass(frozen=True)
class RankCell:
    """Ranks of one projection of one layer (from 0) under two plans. shares: kept parameters / dense ones."""

    layer: int
    slot: str
    a: str
    b: str
    a_share: float
    b_share: float

    @property
    def difference(self) -> float:
        """Share kept by b minus that kept by a."""
        return self.b_share - self.a_share


def rank_cells(a: RankPlan, b: RankPlan) -> tuple[RankCell, ...] | None:
    """Every cell where two plans of one model differ; None where they are of different models."""
    if _linears(a) != _linears(b):
        return None
    cells = []
    for layer, slot in a.shape:
        theirs = b.shape.slot(layer, slot.name)
        mine, other = a.get(layer, slot.name), b.get(layer, slot.name)
        if mine == other and (slot.units, slot.sharing) == (theirs.units, theirs.sharing):
            continue
        cells.append(
            RankCell(
                layer,
                slot.name,
                ranks_in_words(mine),
                ranks_in_words(other),
                _share(a, layer, slot.name),
                _share(b, layer, slot.name),
            )
        )
    return tuple(cells)


def ranks_in_words(ranks: tuple[Rank, ...]) -> str:
    """One rank, a range, or dense.

    >>> ranks_in_words((25,)), ranks_in_words((16, 32, None)), ranks_in_words((None, None))
    ('25', '16–32, 1 dense', 'dense')
    """
    numbers = sorted({rank for rank in ranks if rank is not None})
    if not numbers:
        return "dense"
    text = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
    dense = sum(rank is None for rank in ranks)
    return f"{text}, {dense} dense" if dense else text


def _linears(plan: RankPlan) -> list[tuple[int, str, int, int]]:
    return [(layer, slot.name, slot.out_features, slot.in_features) for layer, slot in plan.shape]


def _share(plan: RankPlan, layer: int, name: str) -> float:
    slot = plan.shape.slot(layer, name)
    kept = sum(
        slot.unit_parameters if rank is None else slot.factor_parameters(rank)
        for rank in plan.get(layer, name)
    )
    return kept / (slot.out_features * slot.in_features)


def by_layer_and_op(a: EngineRun, b: EngineRun) -> pd.DataFrame:
    """Memory of two runs of any engines aligned by layer and op, as `ALIGNED_COLUMNS`; the largest difference first."""
    table = _highest(a, "a_bytes").join(_highest(b, "b_bytes"), how="outer").reset_index()
    table["difference_bytes"] = table["b_bytes"] - table["a_bytes"]
    order = table["difference_bytes"].abs().fillna(-1.0).to_numpy()
    return table.iloc[np.argsort(-order, kind="stable")][list(ALIGNED_COLUMNS)].reset_index(drop=True)


def _highest(run: EngineRun, name: str) -> pd.DataFrame:
    rows = run.timeline
    moved = rows["bytes"].to_numpy(dtype=float)
    passing = rows["category"].to_numpy() != "weight"
    live = np.cumsum(np.where(passing, moved, 0.0))
    table = pd.DataFrame(
        {
            "layer": rows["layer"].to_numpy(dtype=np.int64) + 1,
            "op": rows["op"].astype(str).to_numpy(),
            name: live,
        }
    )[passing]
    return table.groupby(["layer", "op"], sort=True).max()
