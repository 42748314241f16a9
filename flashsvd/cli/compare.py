"""`compare`: dense, low-rank and flash on the same input."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from flashsvd.cli import options
from flashsvd.cli.keeping import keep_run
from flashsvd.cli.numbers import interval, number
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
    calibration: options.CalibrationText = None,
    calibration_samples: options.CalibrationSamples = 256,
    batch: options.Batch = 8,
    seq: options.Seq = 256,
    dtype: options.Dtype = "fp32",
    device: options.Device = "auto",
    engines: options.Engines = "dense,lowrank,flash",
    samples: options.Samples = None,
    repeats: options.Repeats = 10,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Run a model dense and compressed on the same input: latency, memory, accuracy, and whether they agree."""
    from flashsvd.results import Calibration, CompareRequest, to_json

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
        calibration=Calibration(calibration, calibration_samples, seed),
    )
    from flashsvd.compare import compare as run

    with progress_bar() as progress:
        result = run(request, progress=progress)
    if as_json:
        print(json.dumps(to_json(result)))
    else:
        _print(result)
    keep_run(result)


def _print(result: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"[bold]{result.model.name}[/bold], {result.method}, batch {result.batch} x {result.seq}, "
        f"{result.dtype}, {result.machine.label}"
    )
    console.print(result.plan.summary(), soft_wrap=True)
    scored = next((run.metric for run in result.runs if run.metric), None)
    score = scored.name if scored else "accuracy"
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in ("engine", "ms", "p20-p80", "activations", "weights", score, "95 %", "vs lowrank"):
        table.add_column(heading, no_wrap=True)
    flash = result.run("flash")
    shared = "as flash" if flash and flash.metric else "-"
    for run in result.runs:
        latency, metric = run.latency_ms, run.metric
        table.add_row(
            run.engine,
            _milliseconds(latency.p50),
            f"{_milliseconds(latency.p20)}-{_milliseconds(latency.p80)}",
            format_bytes(run.peak_activation_bytes),
            format_bytes(run.weight_bytes),
            number(metric.value) if metric else shared,
            interval(metric) if metric else "-",
            _agreement(run),
        )
    console.print(table)
    if scored is None:
        console.print("Accuracy does not apply: random weights, or no held-out set.")
        return
    floor = "" if scored.floor is None else f"; the commonest class alone scores {scored.floor:.3f}"
    better = "; lower is better" if scored.lower_is_better else ""
    console.print(f"{scored.name.capitalize()} on {scored.n} held-out {scored.counted}{floor}{better}.")


def _agreement(run: EngineRun) -> str:
    if run.error_vs_lowrank is None:
        return ""
    verdict = (
        "" if run.gate is None else (" [green]agrees[/green]" if run.gate.passed else " [red]DIFFERS[/red]")
    )
    return f"{run.error_vs_lowrank:.0e}{verdict}"


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
