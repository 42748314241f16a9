"""`evaluate`: how good a model is, as it is or compressed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashsvd.cli import options
from flashsvd.cli.numbers import interval, number
from flashsvd.cli.progress import progress_bar

if TYPE_CHECKING:
    from flashsvd.evaluation.evaluate import Evaluation
    from flashsvd.results import PlanChoice

Task = Annotated[
    str | None,
    typer.Option(
        help="bundled, glue/NAME, wikitext-2, text:PATH, a file or folder of examples, or harness:NAME; "
        "the model's own set if left out."
    ),
]
Share = Annotated[
    float | None, typer.Option(help="Share of the factored linears' parameters to keep, above 0 to 1.")
]


def evaluate(
    model: options.Model,
    task: Task = None,
    method: options.Method = "svd",
    keep: Share = None,
    ranks: options.Ranks = None,
    plan: options.Plan = None,
    rules: options.Rules = None,
    per_head: options.PerHead = True,
    against: Annotated[str | None, typer.Option(help="The dense model to compare predictions with.")] = None,
    calibration: options.CalibrationText = None,
    calibration_samples: options.CalibrationSamples = 256,
    window: Annotated[int | None, typer.Option(help="Tokens that perplexity looks at.")] = None,
    stride: Annotated[int | None, typer.Option(help="Tokens from one window to the next.")] = None,
    samples: Annotated[int, typer.Option(help="Examples, or windows of plain text, to score at most.")] = 512,
    batch: Annotated[int, typer.Option(help="Examples a forward pass.")] = 32,
    dtype: options.Dtype = "fp32",
    device: options.Device = "auto",
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Score a model on a task: as it is, at the ranks of a plan, or from a compressed folder."""
    choice = _choice(keep, ranks, plan, rules)
    from flashsvd.evaluation.evaluate import EvaluateRequest
    from flashsvd.evaluation.evaluate import evaluate as run
    from flashsvd.results import Calibration, to_json

    request = EvaluateRequest(
        model=model,
        task=task,
        choice=choice,
        method=method,
        per_head=per_head,
        dtype=dtype,
        device=device,
        samples=samples,
        batch=batch,
        seed=seed,
        against=against,
        window=window,
        stride=stride,
        calibration=Calibration(calibration, calibration_samples, seed),
    )
    with progress_bar() as progress:
        result = run(request, progress=progress)
    print(json.dumps(to_json(result))) if as_json else _print(result)


def _choice(keep: float | None, ranks: str | None, plan: Path | None, rules: str | None) -> PlanChoice | None:
    """The plan that the options name; None where they name none."""
    if all(value is None for value in (keep, ranks, plan, rules)):
        return None
    return options.plan_choice(keep, ranks, plan, rules)


def _print(result: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    how = f", {result.method}" if result.method else ""
    console.print(
        f"[bold]{result.model.name}[/bold]{how} on {result.task.title}, {result.dtype}, {result.machine.label}",
        highlight=False,
    )
    if result.plan is not None:
        console.print(result.plan.summary(), soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("score", "value", "95 %", "n", "floor"):
        table.add_column(heading, no_wrap=True)
    extra = [metric for metric in (result.kl, result.agreement) if metric is not None]
    for metric in (*result.scores, *extra):
        name = f"{metric.name} to {result.against}" if metric in extra else metric.name
        table.add_row(
            name,
            number(metric.value),
            interval(metric, between=" to "),
            f"{metric.n:,}",
            number(metric.floor),
        )
    console.print(table)
    if result.perplexity is not None:
        found = result.perplexity
        console.print(
            f"{found.tokens:,} tokens in windows of {found.window}, one every {found.stride}", highlight=False
        )
    if result.layer_errors:
        worst = ", ".join(f"{layer.place} {layer.error:.1%}" for layer in result.layer_errors)
        console.print(f"largest relative output errors: {worst}", soft_wrap=True, highlight=False)
