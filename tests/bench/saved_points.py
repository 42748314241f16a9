"""Points as a run would save them, made up in a line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flashsvd.bench.decode import DecodeRequest
from flashsvd.bench.encoder import EncoderRequest
from flashsvd.bench.prefill import PrefillRequest
from flashsvd.bench.request import ModelRequest
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
    return SavedPoint(_point(request, "bert-base, 12 layers", rows, created, failure), place)


DECODE_LATENCIES = {
    "dense": 25.0,
    "dense-static-compile": 6.0,
    "dense-graph": 4.0,
    "lowrank": 22.0,
    "lowrank-static-compile": 5.9,
    "flash": 9.0,
    "flash-graph": 2.0,
    "flash-graph-rank": 2.1,
}
PREFILL_LATENCIES = {
    "dense": 8.0,
    "dense-compile": 7.0,
    "dense-micro": 9.0,
    "lowrank": 11.0,
    "lowrank-compile": 6.9,
    "flash": 5.0,
}
_HALF: dict[str, Any] = {"dtype": "bf16", "method": "random", "per_head": False}


def saved_decode(
    *, red: str | None = None, differences: int = 0, failure: str | None = None, **changes: Any
) -> SavedPoint:
    """A point of llama-2-7b, one sequence after 512 tokens; `red` names a row whose greedy tokens differ."""
    start = DecodeRequest("llama-2-7b", PlanChoice(keep=0.5), ("keep", "0.5"), **_HALF)
    request = replace(start, **changes)
    rows = tuple(
        replace(
            row(name, latency, replace(GREEN, passed=name != red)),
            tokens_per_second=request.batch * 1e3 / latency,
            weight_bytes=int((12.6 if name.startswith("dense") else 6.6) * 2**30),
            kv_bytes=int((0.2 if name.endswith("rank") else 0.27) * 2**30),
            bandwidth_share=1.4 / latency,
            kernels=300,
            launches=1 if "graph" in name else 400,
            agreement=1.0,
            differences=differences if name == red else 0,
        )
        for name, latency in DECODE_LATENCIES.items()
    )
    return SavedPoint(
        _point(request, "llama-2-7b, 32 layers", rows, "2026-01-03T03:04:05+00:00", failure), PLACE
    )


def saved_prefill(**changes: Any) -> SavedPoint:
    """A point of llama-2-7b, eight prompts of 2048 tokens."""
    start = PrefillRequest("llama-2-7b", PlanChoice(keep=0.5), ("keep", "0.5"), batch=8, seq=2048, **_HALF)
    request = replace(start, **changes)
    rows = tuple(
        replace(row(name, latency), tokens_per_second=request.batch * request.seq * 1e3 / latency)
        for name, latency in PREFILL_LATENCIES.items()
    )
    return SavedPoint(
        _point(request, "llama-2-7b, 32 layers", rows, "2026-01-04T03:04:05+00:00", None), PLACE
    )


def _point(
    request: ModelRequest, about: str, rows: tuple[Row, ...], created: str, failure: str | None
) -> Point:
    measured = () if failure else with_ratios(rows, request.baselines)
    return Point(
        request.bench,
        request.config(),
        request.command(),
        created,
        about,
        request.baselines,
        measured,
        failure,
    )
