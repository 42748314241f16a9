"""Invented results of stdlib-bert's shape, and services that need no worker."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from app import services
from flashsvd.allocate import uniform
from flashsvd.curve_set import CostTable
from flashsvd.errors import FlashSVDError
from flashsvd.jobs import JobStatus, QueuedJob
from flashsvd.models.families.bert import FAMILY
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan
from flashsvd.results import (
    TIMELINE_COLUMNS,
    CompareRequest,
    Comparison,
    Curve,
    CurvePoint,
    EngineRun,
    GateReport,
    Machine,
    Metric,
    ModelInfo,
    Quantiles,
    SpectraRequest,
    SpectraSummary,
)

MIB = 2**20
MACHINE = Machine("cpu", None, None, "Test CPU", 2, 8 * 2**30, "Linux", "3.11", "2.13", None, "5.17", None)


def bert_shape(layers: int = 6, hidden: int = 256, heads: int = 4, positions: int = 256) -> ModelShape:
    return FAMILY.shape(
        SimpleNamespace(
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_attention_heads=heads,
            num_hidden_layers=layers,
            max_position_embeddings=positions,
        )
    )


SHAPE = bert_shape()
INFO = ModelInfo("stdlib-bert", "bundled", True, 5_860_000, SHAPE)


def metric(value: float, n: int = 512) -> Metric:
    half = 1.96 * float(np.sqrt(value * (1 - value) / n))
    return Metric("accuracy", value, n, max(0.0, value - half), min(1.0, value + half), 0.11, 0)


def perplexity(value: float, n: int = 32_768) -> Metric:
    return Metric("perplexity", value, n, 0.97 * value, 1.03 * value, None, 0, counted="tokens")


def language(result: Comparison, flash: float, dense: float = 4.1) -> Comparison:
    """The same run of a language model."""
    runs = tuple(
        dataclasses.replace(run, metric=perplexity(dense if run.engine == "dense" else flash))
        for run in result.runs
    )
    return dataclasses.replace(result, runs=runs)


def language_curve(name: str = "stdlib-llama") -> Curve:
    """Perplexity that falls from thousands to the dense 4.1."""
    points = tuple(
        dataclasses.replace(point, metric=perplexity(4.1 + 3000 * float(np.exp(-12 * point.keep))))
        for point in curve_points()
    )
    return dataclasses.replace(
        curve(), model=dataclasses.replace(INFO, name=name), dense=perplexity(4.1), points=points
    )


def events(
    peak_bytes: int, layers: int = 6, per_layer: int = 40, weight_bytes: int = 24 * MIB
) -> pd.DataFrame:
    """Births and deaths: every layer climbs to `peak_bytes` and falls back."""
    rows: list[tuple[Any, ...]] = []
    live, event = weight_bytes, 0

    def push(layer: int, category: str, moved: int, op: str) -> None:
        nonlocal live, event
        live += moved
        rows.append((event, op, f"encoder.layer.{layer}", layer, category, moved, live, 0.1 * event))
        event += 1

    rows.append((0, "weights", "", -1, "weight", weight_bytes, live, 0.0))
    held = peak_bytes // 5
    push(-1, "activation", held, "embedding")
    for layer in range(layers):
        step = (peak_bytes - held) // (per_layer // 2)
        for index in range(per_layer // 2):
            push(layer, "workspace" if index % 3 else "activation", step, "aten::mm")
        for index in range(per_layer // 2):
            push(layer, "workspace" if index % 3 else "activation", -step, "aten::mm")
    push(-1, "activation", -held, "embedding")
    return pd.DataFrame(rows, columns=list(TIMELINE_COLUMNS))


def run(
    engine: str,
    ms: float,
    peak: int,
    score: float | None,
    *,
    layers: int = 6,
    gate: GateReport | None = None,
    weight_bytes: int = 24 * MIB,
) -> EngineRun:
    return EngineRun(
        engine=engine,
        backend="torch",
        latency_ms=Quantiles(0.97 * ms, ms, 1.03 * ms),
        repeats=10,
        peak_activation_bytes=peak,
        weight_bytes=weight_bytes,
        metric=None if score is None else metric(score),
        error_vs_lowrank=None if engine == "dense" else 1e-7,
        gate=gate,
        timeline=events(peak, layers, weight_bytes=weight_bytes),
    )


GREEN = GateReport(True, 1e-6, 8e-7, 1e-4, "lowrank")
RED = GateReport(False, 0.3, 8e-7, 1e-4, "lowrank")


def comparison(
    keep: float = 0.5,
    *,
    flash_ms: float = 121.0,
    gate: GateReport | None = GREEN,
    info: ModelInfo = INFO,
    plan: RankPlan | None = None,
    score: float = 0.884,
    batch: int = 8,
    seq: int = 256,
    dtype: str = "fp32",
    created: str = "2026-11-12T09:30:00+00:00",
) -> Comparison:
    layers = len(info.shape.layers)
    own: float | None = score if info.trained else None
    full: float | None = 0.89 if info.trained else None
    return Comparison(
        created=created,
        machine=MACHINE,
        model=info,
        method="svd",
        plan=plan or uniform(info.shape, keep),
        batch=batch,
        seq=seq,
        dtype=dtype,
        seed=0,
        decompositions=36,
        runs=(
            run("dense", 110.0, 18 * MIB, full, layers=layers),
            run("lowrank", 96.0, 17 * MIB, own, layers=layers, weight_bytes=15 * MIB),
            run("flash", flash_ms, int(4.1 * MIB), own, layers=layers, gate=gate, weight_bytes=15 * MIB),
        ),
    )


def curve_points(count: int = 10) -> tuple[CurvePoint, ...]:
    points = []
    for step in range(1, count + 1):
        keep = step / 10
        plan = uniform(SHAPE, keep)
        value = 0.11 + 0.78 / (1 + float(np.exp(-(keep - 0.25) * 16)))
        points.append(
            CurvePoint(keep, plan.keep, plan.kept_parameters, plan.to_text(), metric(min(value, 0.89)))
        )
    return tuple(points)


def curve(created: str = "2026-11-12T09:30:00+00:00") -> Curve:
    return Curve(created, MACHINE, INFO, "svd", "fp32", 0, 36, 70.0, metric(0.89), curve_points())


def sigmas(shape: ModelShape = SHAPE) -> dict[tuple[int, str], np.ndarray]:
    rng = np.random.default_rng(0)
    values = {}
    for layer, slot in shape:
        decay = np.exp(-np.arange(slot.full_rank) / (slot.full_rank / (2.5 + rng.random())))
        values[layer, slot.name] = np.stack([decay * (3 + unit % 3) for unit in range(slot.units)])
    return values


@dataclasses.dataclass
class FakeRecording:
    """A recording whose parts a test may exchange."""

    comparison: Comparison
    curve: Curve | None
    sigmas: dict[tuple[int, str], np.ndarray]


def recording() -> FakeRecording:
    return FakeRecording(comparison(), curve(), sigmas())


class FakeStore:
    """Keeps results in memory."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.tables: list[CostTable] = []

    def add_costs(self, table: CostTable) -> None:
        self.tables.append(table)

    def costs(self, model: str) -> list[CostTable]:
        return [table for table in reversed(self.tables) if table.model == model]

    def add(self, result: Any) -> int:
        self.results.append(result)
        return len(self.results)

    def rows(self, limit: int = 50, wanted: Any = None) -> list[Any]:
        """What the list of runs needs to choose by, newest first."""
        model = wanted.model if wanted else None
        found = [
            SimpleNamespace(
                id=number,
                kind="compare" if isinstance(result, Comparison) else "curve",
                batch=getattr(result, "batch", None),
                seq=getattr(result, "seq", None),
                dtype=result.dtype,
            )
            for number, result in enumerate(self.results)
            if model in (None, result.model.name)
        ]
        return found[::-1][:limit]

    def get(self, number: int) -> Any:
        return self.results[number]

    def latest(self, kind: str, model: str) -> Any:
        wanted = Comparison if kind == "compare" else Curve
        return next(
            (r for r in reversed(self.results) if isinstance(r, wanted) and r.model.name == model), None
        )


class FakeJobs:
    """A job waits until the test says `finish`, `fail` or it is cancelled."""

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {}
        self.states: dict[str, JobStatus] = {}
        self.results: dict[str, Any] = {}
        self.points: list[CurvePoint] = []

    def submit(self, request: Any) -> str:
        job = f"job{len(self.requests)}"
        self.requests[job] = request
        kind = {CompareRequest: "compare", SpectraRequest: "spectra"}.get(type(request), "curve")
        self.states[job] = JobStatus(job, kind, "running", "Timing the dense model", 0.25, 0, None, 3.0)
        return job

    def status(self, job: str) -> JobStatus:
        return self.states[job]

    def result(self, job: str) -> Any:
        if job not in self.results:
            raise FlashSVDError("this job has no result")
        return self.results[job]

    def partial(self, job: str) -> list[CurvePoint]:
        return list(self.points)

    def cancel(self, job: str) -> None:
        self.states[job] = dataclasses.replace(self.states[job], state="cancelled")

    address: str | None = None

    def queue(self) -> list[QueuedJob]:
        waiting = [(job, now) for job, now in self.states.items() if now.active]
        return [QueuedJob("Live run", getattr(self.requests[job], "model", ""), now) for job, now in waiting]

    def machines(self) -> tuple[Machine, ...]:
        return (MACHINE,)

    def fail(self, job: str, line: str) -> None:
        self.states[job] = dataclasses.replace(self.states[job], state="failed", error=line)

    def finish(self, job: str, result: Any = None) -> None:
        """Ends a job with what its request would give."""
        request = self.requests[job]
        self.results[job] = result if result is not None else answer(request)
        services.keep(self.results[job])
        self.states[job] = dataclasses.replace(self.states[job], state="done", fraction=1.0)


def answer(request: Any) -> Any:
    """A result for a request, other than the recording's numbers."""
    info = INFO if request.model == "stdlib-bert" else preset_info(request.model)
    shape = info.shape.with_per_head(request.per_head)
    now = "2026-11-20T10:00:00+00:00"
    if isinstance(request, CompareRequest):
        return comparison(
            info=dataclasses.replace(info, shape=shape),
            plan=request.choice.resolve(shape),
            flash_ms=77.0,
            score=0.801,
            batch=request.batch,
            seq=request.seq,
            dtype=request.dtype,
            created=now,
        )
    if isinstance(request, SpectraRequest):
        return SpectraSummary(dataclasses.replace(info, shape=shape), request.method, sigmas(shape))
    return curve(now)


def preset_info(name: str) -> ModelInfo:
    return ModelInfo(name, "preset", False, 109_482_240, bert_shape(12, 768, 12, 512))
