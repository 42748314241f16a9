"""Points as a run would save them, made up in a line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flashsvd.bench.encoder import BASELINES, EncoderRequest
from flashsvd.bench.rows import Point, Row, with_ratios
from flashsvd.bench.saved import Place, SavedPoint
from flashsvd.measure.ceilings import Ceilings
from flashsvd.results import GateReport, Machine, PlanChoice, Quantiles

GREEN = GateReport(True, 1e-3, 1e-3, 2e-3, "lowrank, fp32")
RED = GateReport(False, 0.5, 1e-3, 2e-3, "lowrank, fp32")
MACHINE = Machine(
    device="cuda",
    accelerator="NVIDIA H200",
    accelerator_memory_bytes=2**37,
    cpu="Xeon",
    cores=16,
    memory_bytes=2**37,
    platform="Linux x86_64",
    python="3.12.3",
    torch="2.11.0",
    triton="3.6.0",
    transformers="5.17.0",
    driver="580.1",
)
PLACE = Place.of(MACHINE, Ceilings(50.0, 780.0, 790.0, 4.3, "highest", 8192, 2**30))
LATENCIES = {
    "dense": 8.0,
    "dense-compile": 7.0,
    "lowrank": 11.0,
    "lowrank-compile": 6.9,
    "flash": 5.0,
    "flash-graph": 3.5,
}


def row(name: str, milliseconds: float, gate: GateReport = GREEN) -> Row:
    """A measured row; peaks follow from the name."""
    peak = (60 if name.startswith("flash") else 240) * 2**20
    latency = Quantiles(milliseconds * 0.9, milliseconds, milliseconds * 1.1)
    return Row(
        name,
        f"{name} in words",
        "measured",
        latency_ms=latency,
        repeats=20,
        peak_bytes=peak,
        weight_bytes=2**20,
        flops=10**12,
        bytes=10**9,
        tflops=200.0,
        gbps=400.0,
        compute_share=0.25,
        bandwidth_share=0.1,
        gate=gate,
    )


def saved(
    *,
    ranks: str = "40,240,240",
    red: str | None = None,
    created: str = "2026-01-02T03:04:05+00:00",
    failure: str | None = None,
    place: Place = PLACE,
    **changes: Any,
) -> SavedPoint:
    """A point of bert-base, batch 32 x 512; `red` names a row whose output is wrong."""
    triple = tuple(int(part) for part in ranks.split(","))
    start = EncoderRequest("bert-base", PlanChoice(ranks=triple), ("ranks", ranks))  # type: ignore[arg-type]
    request = replace(start, **{"batch": 32, "seq": 512, "dtype": "bf16", "method": "random", **changes})
    rows = tuple(row(name, latency, RED if name == red else GREEN) for name, latency in LATENCIES.items())
    point = Point(
        "encoder",
        request.config(),
        request.command(),
        created,
        "bert-base, 12 layers",
        BASELINES,
        () if failure else with_ratios(rows, BASELINES),
        failure,
    )
    return SavedPoint(point, place)
