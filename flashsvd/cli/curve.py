"""`curve`: accuracy or perplexity, and divergence, against keep, of one method or several."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashsvd.cli import options
from flashsvd.cli.keeping import keep_run
from flashsvd.cli.numbers import interval, number
from flashsvd.cli.progress import progress_bar

if TYPE_CHECKING:
    from flashsvd.curve_set import CostTable
    from flashsvd.results import Curve


def curve(
    model: options.Model,
    method: Annotated[
        str, typer.Option(help="One method or several, comma-separated: svd,fwsvd,asvd:alpha=0.3,whiten.")
    ] = "svd",
    keep: Annotated[str, typer.Option(help="FIRST:LAST:STEP or a comma-separated list.")] = "0.1:1.0:0.1",
    per_head: options.PerHead = True,
    allocator: options.Allocator = "uniform",
    calibration: options.CalibrationText = None,
    calibration_samples: options.CalibrationSamples = 256,
    calibration_seeds: Annotated[
        str,
        typer.Option(
            help="Comma-separated: one curve for each draw, where the method or the allocator looks at text."
        ),
    ] = "0",
    dtype: options.Dtype = "fp32",
    device: options.Device = "auto",
    samples: options.Samples = None,
    seed: options.Seed = 0,
    task: Annotated[
        str | None,
        typer.Option(help="What is scored: glue/NAME, text:PATH, a file ...; the model's own set if none."),
    ] = None,
    timed: Annotated[
        str | None,
        typer.Option(help="Also time every plan at BATCHxTOKENS, such as 8x256, and take its peak memory."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A recording of the curves to write, which the app replays.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Score a model at many keeps, from one decomposition per matrix and method."""
    from flashsvd.methods import method_named
    from flashsvd.results import Calibration, CurveRequest, to_json
    from flashsvd.search.allocators import NEED_TEXT

    shape = _timed(timed)
    keeps, seeds = options.parse_grid(keep), options.parse_seeds(calibration_seeds)
    requests = [
        CurveRequest(
            model=model,
            keeps=keeps,
            method=spec,
            per_head=per_head,
            dtype=dtype,
            device=device,
            samples=samples,
            seed=seed,
            calibration=Calibration(calibration, calibration_samples, draw),
            allocator=allocator,
            task=task,
        )
        for spec in options.parse_methods(method)
        for draw in (seeds if method_named(spec).needs or allocator in NEED_TEXT else seeds[:1])
    ]
    from flashsvd.curve import score_curve
    from flashsvd.session import Session

    session, results = Session(), []
    with progress_bar() as progress:
        for number, request in enumerate(requests):
            words = f"{request.method}: " if len(requests) > 1 else ""

            def tell(stage: str, share: float, done: int = number, words: str = words) -> None:
                progress(words + stage, (done + share) / len(requests))

            results.append(score_curve(request, session, tell))
        costs: tuple[CostTable, ...] = ()
        if shape:
            from flashsvd.curves import plan_costs

            costs = (plan_costs(results, shape, session, progress, per_head=per_head, device=device),)
    if out is not None:
        from flashsvd.curve_set import CurveSet, write_curves

        command = shlex.join(["python", "-m", "flashsvd", *sys.argv[1:]])
        write_curves(out, CurveSet(tuple(results), costs, command))
    if as_json:
        found = [to_json(result) for result in results]
        print(json.dumps(found[0] if len(found) == 1 else {"curves": found}))
    else:
        _print(results)
    for result in results:
        keep_run(result)
    for table in costs:
        keep_run(table)


def _timed(text: str | None) -> tuple[int, int] | None:
    """Raises InputError for what is not BATCHxTOKENS."""
    from flashsvd.errors import InputError

    if text is None:
        return None
    batch, cross, seq = text.partition("x")
    if not (cross and batch.isdecimal() and seq.isdecimal()):
        raise InputError(f"timed must be BATCHxTOKENS, such as 8x256, got {text!r}")
    return int(batch), int(seq)


def _print(results: Sequence[Curve]) -> None:
    from rich.console import Console
    from rich.table import Table

    several = len(results) > 1
    table = Table(box=None, padding=(0, 1, 0, 0))
    dense = results[0].dense
    same = "same token" if dense.name == "perplexity" else "same class"
    headings = ("keep", "parameters", dense.name, "95 %", "KL to dense", "95 %", same)
    for heading in ("method", "draw", *headings) if several else headings:
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("method", "95 %") else "right")
    for result in results:
        draw = str(result.calibration.seed) if result.calibration else "-"
        for point in result.points:
            row = [f"{point.keep:.3f}", f"{point.kept_parameters:,}", number(point.metric.value)]
            row += [interval(point.metric)]
            row += [f"{point.kl.value:.4f}", interval(point.kl, 4)] if point.kl else ["-", "-"]
            row.append(f"{point.agreement.value:.3f}" if point.agreement else "-")
            table.add_row(*([result.method, draw, *row] if several else row))
    # A pipe has no width of its own, and rich would cut every column to fit 80.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    floor = "" if dense.floor is None else f", commonest class {dense.floor:.3f}"
    better = "lower is better, " if dense.lower_is_better else ""
    console.print(
        f"dense {number(dense.value)} ({interval(dense)}){floor}, {better}n {dense.n} {dense.counted}",
        soft_wrap=True,
    )
    calibrated = next((result.calibration for result in results if result.calibration), None)
    if calibrated:
        text = calibrated.text or "the model's own calibration set"
        console.print(f"calibrated on {text}, at most {calibrated.samples} pieces", soft_wrap=True)
