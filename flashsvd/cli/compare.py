"""`compare`: dense, low-rank and flash on the same input."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from flashsvd.cli import options
from flashsvd.cli.progress import progress_bar
from flashsvd.errors import format_bytes

if TYPE_CHECKING:
    from flashsvd.results import Comparison, EngineRun


def compare(
    model: options.Model,
    method: options.Method = "svd",
    keep: options.Keep = None,
    ranks: options.Ranks = None,
    plan: options.Plan = None,
    rules: options.Rules = None,
    per_head: options.PerHead = True,
    batch: options.Batch = 8,
    seq: options.Seq = 256,
    dtype: options.Dtype = "fp32",
    device: options.Device = "auto",
    engines: options.Engines = "dense,lowrank,flash",
    samples: options.Samples = 512,
    repeats: options.Repeats = 10,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Run a model dense and compressed on the same input: latency, memory, accuracy, and whether they agree."""
    from flashsvd.results import CompareRequest, to_json

    request = CompareRequest(
        model=model,
        choice=options.plan_choice(keep, ranks, plan, rules),
        method=method,
        per_head=per_head,
        batch=batch,
        seq=seq,
        dtype=dtype,
        device=device,
        engines=tuple(name.strip() for name in engines.split(",") if name.strip()),
        samples=samples,
        repeats=repeats,
        seed=seed,
    )
    from flashsvd.compare import compare as run
    from flashsvd.store import RunStore

    with progress_bar() as progress:
        result = run(request, progress=progress)
    RunStore().add(result)
    if as_json:
        print(json.dumps(to_json(result)))
    else:
        _print(result)


def _print(result: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"[bold]{result.model.name}[/bold], {result.method}, batch {result.batch} x {result.seq}, "
        f"{result.dtype}, {result.machine.label}"
    )
    console.print(result.plan.summary(), soft_wrap=True)
    table = Table(box=None)
    for heading in (
        "engine",
        "latency ms (p20-p80)",
        "peak activation",
        "weights",
        "accuracy (95 %)",
        "against lowrank",
    ):
        table.add_column(heading)
    for run in result.runs:
        latency = run.latency_ms
        table.add_row(
            run.engine,
            f"{latency.p50:.2f} ({latency.p20:.2f}-{latency.p80:.2f})",
            format_bytes(run.peak_activation_bytes),
            format_bytes(run.weight_bytes),
            _score(run),
            _agreement(run),
        )
    console.print(table)


def _score(run: EngineRun) -> str:
    if run.metric is None:
        return "does not apply"
    metric = run.metric
    return f"{metric.value:.3f} ({metric.low:.3f}-{metric.high:.3f}, n {metric.n})"


def _agreement(run: EngineRun) -> str:
    if run.error_vs_lowrank is None:
        return ""
    verdict = (
        "" if run.gate is None else (" [green]agrees[/green]" if run.gate.passed else " [red]DIFFERS[/red]")
    )
    return f"{run.error_vs_lowrank:.1e}{verdict}"
