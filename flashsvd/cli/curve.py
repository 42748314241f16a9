"""`curve`: accuracy against keep."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from flashsvd.cli import options
from flashsvd.cli.keeping import keep_run
from flashsvd.cli.progress import progress_bar

if TYPE_CHECKING:
    from flashsvd.results import Curve


def curve(
    model: options.Model,
    method: options.Method = "svd",
    keep: Annotated[str, typer.Option(help="FIRST:LAST:STEP or a comma-separated list.")] = "0.1:1.0:0.1",
    per_head: options.PerHead = True,
    dtype: options.Dtype = "fp32",
    device: options.Device = "auto",
    samples: options.Samples = 512,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Score a model at many keeps, from one decomposition per matrix."""
    from flashsvd.results import CurveRequest, to_json

    request = CurveRequest(
        model=model,
        keeps=options.parse_grid(keep),
        method=method,
        per_head=per_head,
        dtype=dtype,
        device=device,
        samples=samples,
        seed=seed,
    )
    from flashsvd.curve import accuracy_curve

    with progress_bar() as progress:
        result = accuracy_curve(request, progress=progress)
    if as_json:
        print(json.dumps(to_json(result)))
    else:
        _print(result)
    keep_run(result)


def _print(result: Curve) -> None:
    print(f"{'keep':>6}  {'parameters':>11}  accuracy (95 %)")
    for point in result.points:
        metric = point.metric
        print(
            f"{point.keep:6.3f}  {point.kept_parameters:11,}  {metric.value:.3f} ({metric.low:.3f}-{metric.high:.3f})"
        )
    dense = result.dense
    print(
        f"dense {dense.value:.3f} ({dense.low:.3f}-{dense.high:.3f}), commonest class {dense.floor:.3f}, n {dense.n}"
    )
