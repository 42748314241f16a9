"""Scores against what they cost: points of curves and of runs on one axis. Plain data: no torch, no pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from flashsvd.curve_set import CostTable, CurvePart, PlanCost
from flashsvd.methods import method_named
from flashsvd.pareto import front
from flashsvd.ranks import bytes_of
from flashsvd.results import Comparison, Curve, CurvePoint, EngineRun, Machine, Metric, ModelInfo

Axis = Literal["keep", "weights", "latency", "memory"]
AXES: tuple[Axis, ...] = ("keep", "weights", "latency", "memory")
"""Share of the factored weights kept in percent; MiB of the whole model's weights, counted; milliseconds of a forward,
median; MiB of peak activation memory."""

Score = Literal["score", "kl", "agreement"]
SCORES: tuple[Score, ...] = ("score", "kl", "agreement")
"""Accuracy or perplexity; mean KL(dense ‖ compressed) in nats; share of equal predictions."""

MIB = 2**20


@dataclass(frozen=True)
class Spot:
    """One point: where it is on the axis, its score, and the plan that gives it.

    source: "curve", "coming" of a curve that is being computed, or "run" of a comparison. asked_keep: the share that
    the allocator was given, None of a run. cost: what running it took, where that was measured.
    """

    method: str
    allocator: str
    source: Literal["curve", "coming", "run"]
    x: float
    metric: Metric
    keep: float
    kept_parameters: int
    plan: str
    machine: str
    asked_keep: float | None = None
    cost: PlanCost | None = None

    @property
    def series(self) -> tuple[str, str]:
        return self.method, self.allocator


@dataclass(frozen=True)
class Tradeoff:
    """All points of one picture. dense: its place and score; left_out: points that have no place on the axis."""

    spots: tuple[Spot, ...]
    dense: tuple[float, Metric] | None
    left_out: int
    costs: tuple[CostTable, ...]

    @property
    def front(self) -> list[int]:
        """Positions in `spots` of the points that no other beats, runs and points still coming in among them."""
        if not self.spots:
            return []
        lower = self.spots[0].metric.lower_is_better
        return front([s.x for s in self.spots], [s.metric.value for s in self.spots], lower_is_better=lower)


def tradeoff(
    curves: Sequence[Curve],
    axis: Axis,
    score: Score,
    *,
    dtype: str,
    costs: Iterable[CostTable] = (),
    coming: Iterable[CurvePart] = (),
    runs: Iterable[Comparison] = (),
    info: ModelInfo | None = None,
) -> Tradeoff:
    """Places points of curves of one model and task on an axis.

    costs: tables of this model at one batch, length and dtype; those of the machine that has most of the plans are
    used, earlier tables first. runs: their flash engine's score is a point, too, of the same held-out set.
    info: the model, where there is no curve that says so yet.
    """
    about = curves[0].model if curves else info
    tables = _one_machine(tuple(costs), curves)
    left_out, spots = 0, []

    def place(method: str, plan: str, kept: int, keep: float) -> tuple[float | None, PlanCost | None]:
        costs = [found for table in tables if (found := table.of(method, plan))]
        # Of several, one that was timed.
        cost = next((found for found in costs if found.latency_ms), costs[0] if costs else None)
        if axis == "keep":
            return 100 * keep, cost
        if axis == "weights":
            return None if about is None else _weights_mib(about, kept, dtype), cost
        return (None if cost is None else _measured(cost, axis)), cost

    found: list[tuple[str, str, CurvePoint, Literal["curve", "coming"], str]] = [
        (curve.method, curve.allocator, point, "curve", curve.machine.label)
        for curve in curves
        for point in curve.points
    ]
    found += [(one.method, one.allocator, one.point, "coming", "") for one in coming]
    for method, allocator, point, source, machine in found:
        metric = _metric(point, score)
        x, cost = place(method, point.plan, point.kept_parameters, point.keep)
        if metric is None or x is None or (metric.unit == "nats" and metric.value <= 0):
            left_out += 1
            continue
        spots.append(
            Spot(
                method=method,
                allocator=allocator,
                source=source,
                x=x,
                metric=metric,
                keep=point.keep,
                kept_parameters=point.kept_parameters,
                plan=point.plan,
                machine=machine,
                asked_keep=point.asked_keep,
                cost=cost,
            )
        )
    if score == "score":
        spots += _run_spots(runs, axis)
    return Tradeoff(tuple(spots), _dense(curves, about, axis, score, dtype, tables), left_out, tables)


def cost_table(comparison: Comparison) -> CostTable | None:
    """The costs that a comparison measured; None where it holds no flash and dense pair."""
    flash, dense = comparison.run("flash"), comparison.run("dense")
    if flash is None or dense is None:
        return None
    method = method_named(comparison.method)

    def cost(run: EngineRun, plan: str, group: int) -> PlanCost:
        return PlanCost(plan, group, run.engine, run.latency_ms, run.peak_activation_bytes, run.weight_bytes)

    return CostTable(
        comparison.created,
        comparison.machine,
        comparison.model.name,
        comparison.plan.shape.per_head,
        comparison.batch,
        comparison.seq,
        comparison.dtype,
        flash.repeats,
        cost(dense, "", 1),
        (cost(flash, comparison.plan.to_text(), method.group),),
    )


def least_keep(curves: Iterable[Curve], tolerance: float) -> list[tuple[Curve, CurvePoint]]:
    """Of each curve the point of least keep that is within a tolerance of dense, best curve first.

    tolerance: points of a share as a share (0.01 is one point), of perplexity relative to dense.
    """
    found = []
    for curve in curves:
        dense = curve.dense
        near = [
            point
            for point in curve.points
            if (
                point.metric.value <= dense.value * (1 + tolerance)
                if dense.lower_is_better
                else point.metric.value >= dense.value - tolerance
            )
        ]
        if near:
            found.append((curve, min(near, key=lambda point: point.keep)))
    return sorted(found, key=lambda pair: pair[1].keep)


def _metric(point: CurvePoint, score: Score) -> Metric | None:
    return {"score": point.metric, "kl": point.kl, "agreement": point.agreement}[score]


def _weights_mib(model: ModelInfo, kept: int, dtype: str) -> float:
    return bytes_of(model.parameters - model.shape.dense_parameters + kept, dtype) / MIB


def _measured(cost: PlanCost, axis: Axis) -> float | None:
    if axis == "memory":
        return cost.peak_activation_bytes / MIB
    return cost.latency_ms.p50 if cost.latency_ms else None


def _one_machine(tables: tuple[CostTable, ...], curves: Sequence[Curve]) -> tuple[CostTable, ...]:
    """Tables of the machine that has most plans of the curves: latencies of two machines do not compare."""

    def plans_of(machine: Machine) -> int:
        mine = [table for table in tables if table.machine.label == machine.label]
        return sum(
            any(table.of(curve.method, point.plan) for table in mine)
            for curve in curves
            for point in curve.points
        )

    if not tables:
        return ()
    label = max((table.machine for table in tables), key=plans_of).label
    return tuple(table for table in tables if table.machine.label == label)


def _dense(
    curves: Sequence[Curve],
    about: ModelInfo | None,
    axis: Axis,
    score: Score,
    dtype: str,
    tables: Sequence[CostTable],
) -> tuple[float, Metric] | None:
    if not curves or about is None or score == "kl":
        return None
    metric = curves[0].dense
    if score == "agreement":
        metric = Metric("agreement", 1.0, metric.n, 1.0, 1.0, None, metric.seed, metric.counted)
    if axis == "keep":
        return 100.0, metric
    if axis == "weights":
        return _weights_mib(about, about.shape.dense_parameters, dtype), metric
    places = (place for table in tables if (place := _measured(table.dense, axis)) is not None)
    place = next(places, None)
    return None if place is None else (place, metric)


def _run_spots(runs: Iterable[Comparison], axis: Axis) -> list[Spot]:
    spots = []
    for run in runs:
        flash, table = run.run("flash"), cost_table(run)
        if flash is None or flash.metric is None or table is None:
            continue
        kept, cost = run.plan.kept_parameters, table.plans[0]
        x = {
            "keep": 100 * run.keep,
            "weights": _weights_mib(run.model, kept, run.dtype),
            "latency": flash.latency_ms.p50,
            "memory": cost.peak_activation_bytes / MIB,
        }[axis]
        spots.append(
            Spot(
                method=run.method,
                allocator="run",
                source="run",
                x=x,
                metric=flash.metric,
                keep=run.keep,
                kept_parameters=kept,
                plan=run.plan.to_text(),
                machine=run.machine.label,
                cost=cost,
            )
        )
    return spots
