"""`compress`: a model at a plan's ranks, as a folder that transformers opens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from flashsvd.cli import options
from flashsvd.cli.progress import progress_bar
from flashsvd.errors import format_bytes

if TYPE_CHECKING:
    from flashsvd.compression.compress import Compressed


def compress(
    model: options.Model,
    out: options.Out,
    method: options.Method = "svd",
    keep: options.Keep = None,
    ranks: options.Ranks = None,
    plan: options.Plan = None,
    rules: options.Rules = None,
    per_head: options.PerHead = True,
    refit: Annotated[
        bool, typer.Option("--refit", help="Refit each layer to what the compressed layers before it give.")
    ] = False,
    calibration: options.CalibrationText = None,
    calibration_samples: options.CalibrationSamples = 256,
    dtype: options.Dtype = "fp32",
    device: options.Device = "auto",
    engine: Annotated[
        str | None, typer.Option(help="What it opens with: flash where the family has it, or lowrank.")
    ] = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="One layer at a time, for models that do not fit.")
    ] = False,
    seed: options.Seed = 0,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a compressed checkpoint: factors and plan, no dense weights of what is factored."""
    from flashsvd.results import Calibration, to_json

    choice = options.plan_choice(keep, ranks, plan, rules)
    from flashsvd.compression.compress import CompressRequest
    from flashsvd.compression.compress import compress as run

    request = CompressRequest(
        model=model,
        out=out,
        choice=choice,
        method=method,
        per_head=per_head,
        dtype=dtype,
        device=device,
        engine=engine,
        calibration=Calibration(calibration, calibration_samples, seed),
        refit=refit,
        low_memory=low_memory,
        force=force,
    )
    with progress_bar() as progress:
        result = run(request, progress=progress)
    print(json.dumps(to_json(result))) if as_json else _print(result)


def _print(result: Compressed) -> None:
    saved = 1 - result.compressed_bytes / result.dense_bytes
    print(f"wrote {result.folder} in {result.seconds:.0f} s")
    print(result.plan.summary())
    print(
        f"weights {format_bytes(result.compressed_bytes)}, dense {format_bytes(result.dense_bytes)} ({saved:.0%} less)"
    )
    if result.layer_errors:
        worst = ", ".join(f"{place} {error:.1%}" for place, error in result.layer_errors[:5])
        print(f"largest relative output errors ({result.method}): {worst}")
