"""Curves of several methods on one model, and what their plans cost to run. Plain data: no torch, no pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from flashsvd.methods import method_named
from flashsvd.paths import assets
from flashsvd.results import (
    OWN_TEXT,
    Calibration,
    Curve,
    CurvePoint,
    CurveRequest,
    Machine,
    Quantiles,
    from_json,
    to_json,
)
from flashsvd.tables import Kind, read_table, write_table

_KIND = Kind("recording of curves", "flashsvd-curves/1")


@dataclass(frozen=True)
class CurvesRequest:
    """Curves of several methods, and of several allocators of each; fields as in `CurveRequest`.

    timed: batch and tokens at which every plan's latency and peak memory are measured too; None for scores alone.
    """

    model: str
    keeps: tuple[float, ...]
    methods: tuple[str, ...]
    allocators: tuple[str, ...] = ("uniform",)
    per_head: bool = True
    dtype: str = "fp32"
    device: str = "auto"
    samples: int | None = None
    seed: int = 0
    calibration: Calibration = OWN_TEXT
    task: str | None = None
    timed: tuple[int, int] | None = None

    def pieces(self, workers: int) -> list[CurvesRequest]:
        """The same points in requests that do not need one another, at least two for each worker where there are so
        many points. What plans take is not measured in them: that is for one worker, when all points are there.
        """
        single = self.single()
        each = min(len(self.keeps), math.ceil(2 * workers / max(1, len(single))))
        return [
            dataclasses.replace(
                self,
                keeps=self.keeps[start::each],
                methods=(one.method,),
                allocators=(one.allocator,),
                timed=None,
            )
            for one in single
            for start in range(each)
        ]

    def single(self) -> list[CurveRequest]:
        """One request for each curve, in the order in which they are computed."""
        return [
            CurveRequest(
                model=self.model,
                keeps=self.keeps,
                method=method,
                per_head=self.per_head,
                dtype=self.dtype,
                device=self.device,
                samples=self.samples,
                seed=self.seed,
                calibration=self.calibration,
                allocator=allocator,
                task=self.task,
            )
            for method in dict.fromkeys(self.methods)
            for allocator in dict.fromkeys(self.allocators)
        ]


@dataclass(frozen=True)
class CurvePart:
    """One point of one of several curves, as soon as it is measured."""

    method: str
    allocator: str
    point: CurvePoint


@dataclass(frozen=True)
class PlanCost:
    """What running a plan takes: latency (None where only memory was measured), peak activation memory and resident
    weights. `group` layers share factors.
    """

    plan: str
    group: int
    engine: str
    latency_ms: Quantiles | None
    peak_activation_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class CostTable:
    """Costs of plans that were timed in turn, the dense model among them. They do not depend on the numbers in the
    factors, so that a plan of any method has its row here.
    """

    created: str
    machine: Machine
    model: str
    per_head: bool
    batch: int
    seq: int
    dtype: str
    repeats: int
    dense: PlanCost
    plans: tuple[PlanCost, ...]

    def of(self, method: str, plan: str) -> PlanCost | None:
        """The cost of a method's plan; None where it was not timed."""
        group = method_named(method).group
        return next((cost for cost in self.plans if (cost.group, cost.plan) == (group, plan)), None)


@dataclass(frozen=True)
class CurveSet:
    """What came of a `CurvesRequest`, or what a recording holds. command: repeats it."""

    curves: tuple[Curve, ...]
    costs: tuple[CostTable, ...] = ()
    command: str = ""


def joined(curves: Iterable[Curve]) -> tuple[Curve, ...]:
    """Curves whose points came in pieces: one of each method and allocator, in the order of their first pieces.

    The time is that of all pieces added up; the machine and the dense score are those of the first.
    """
    found: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        found.setdefault((curve.method, curve.allocator), []).append(curve)
    return tuple(_whole(pieces) for pieces in found.values())


def _whole(pieces: list[Curve]) -> Curve:
    points = sorted((point for piece in pieces for point in piece.points), key=_asked)
    return dataclasses.replace(
        pieces[0],
        created=max(piece.created for piece in pieces),
        decompositions=max(piece.decompositions for piece in pieces),
        seconds=sum(piece.seconds for piece in pieces),
        points=tuple(points),
    )


def _asked(point: CurvePoint) -> float:
    return point.asked_keep


def find_curves(model: str) -> Path | None:
    """The recording of curves that ships for a model, or None."""
    folder = assets() / "recordings" / "curves"
    path = folder / f"{model}.parquet"
    return path if path in set(folder.glob("*.parquet")) else None


def write_curves(path: Path, found: CurveSet) -> None:
    """Writes one file, whole or not at all: a row for each point, everything else in the header.

    Raises:
        InputError: it cannot be written.
    """
    table = pa.Table.from_pandas(points_table(found.curves), preserve_index=False)
    write_table(path, _KIND, to_json(found), table)


def read_curves(path: Path) -> CurveSet:
    """Reads `write_curves`.

    Raises:
        InputError: not a recording of curves, truncated, too large, or from another version.
    """
    header, _ = read_table(path, _KIND)
    found: CurveSet = from_json(CurveSet, header)
    return found


def points_table(curves: Iterable[Curve]) -> pd.DataFrame:
    """One row a point: where it is, its score with interval, and how far it is from dense."""
    rows = []
    for curve in curves:
        for point in curve.points:
            row = {
                "model": curve.model.name,
                "method": curve.method,
                "allocator": curve.allocator,
                "task": curve.task or "own",
                "keep": point.keep,
                "kept_parameters": point.kept_parameters,
                "metric": point.metric.name,
                "value": point.metric.value,
                "low": point.metric.low,
                "high": point.metric.high,
                "n": point.metric.n,
                "seed": point.metric.seed,
                "kl_nats": point.kl.value if point.kl else None,
                "agreement": point.agreement.value if point.agreement else None,
                "plan": point.plan,
                "machine": curve.machine.label,
                "created": curve.created,
            }
            rows.append(row)
    return pd.DataFrame(rows)
