"""`finetune`: train a model on a task, or the factors of a cut."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashsvd.cli import options
from flashsvd.cli.progress import progress_bar
from flashsvd.errors import Cancelled

if TYPE_CHECKING:
    from flashsvd.finetune.request import FinetuneReport
    from flashsvd.results import Metric

_LOSSES = "Losses"
_DATA = "Data"
_FILES = "Files"

Weight = float | None


def finetune(
    model: options.Model,
    out: Annotated[Path, typer.Argument(help="Folder to write the trained model to.")],
    task: Annotated[str, typer.Option(help="What to train on and score: see `tasks`.")],
    keep: Annotated[
        float | None, typer.Option(help="Cut to this share of the factored linears, then train the factors.")
    ] = None,
    ranks: options.Ranks = None,
    plan: options.Plan = None,
    rules: options.Rules = None,
    method: options.Method = "svd",
    calibration: options.CalibrationText = None,
    calibration_samples: options.CalibrationSamples = 256,
    per_head: options.PerHead = True,
    train: Annotated[
        str, typer.Option(help="Of a cut: factors, or all (biases, norms and head too).")
    ] = "factors",
    teacher: Annotated[
        str | None, typer.Option(help="The dense model to learn from, where MODEL is compressed already.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder of a tokenizer, for a model without.")] = None,
    new_head: Annotated[
        bool, typer.Option("--new-head", help="Replace a head that is for other classes.")
    ] = False,
    distill: Annotated[
        Weight,
        typer.Option(help="Weight of the dense model's answers; 1 after a cut.", rich_help_panel=_LOSSES),
    ] = None,
    hidden: Annotated[
        Weight,
        typer.Option(help="Weight of its hidden states; 1 after a cut.", rich_help_panel=_LOSSES),
    ] = None,
    labels: Annotated[
        Weight,
        typer.Option(
            help="Weight of the task's labels; 0 where the dense model teaches, else 1.",
            rich_help_panel=_LOSSES,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Softens the answers that are compared.", rich_help_panel=_LOSSES)
    ] = 2.0,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the training split; 3, or 5 for factors.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, in the place of epochs.")] = None,
    batch: Annotated[int, typer.Option(help="Examples in a step.")] = 16,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; 5e-5, or 2e-4 for factors.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of an example at most.", rich_help_panel=_DATA)
    ] = None,
    mask: Annotated[
        float | None,
        typer.Option(
            help="Share of tokens hidden at random; 0.15 without labels, else 0.", rich_help_panel=_DATA
        ),
    ] = None,
    crop: Annotated[
        float | None,
        typer.Option(
            help="Smallest share of a text that is kept at random; 0.5 without labels, else 1.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Validation examples to score at most; all if left out.", rich_help_panel=_DATA),
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between scores and checkpoints; a quarter of the run.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order, the crops, the masks and a new head.")] = 0,
    device: options.Device = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier run in OUT.", rich_help_panel=_FILES)
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.", rich_help_panel=_FILES)
    ] = False,
    keep_checkpoints: Annotated[
        bool,
        typer.Option("--keep-checkpoints", help="Leave the checkpoints in OUT.", rich_help_panel=_FILES),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Train a model on a task; with ranks, cut it first and train the factors towards the dense model."""
    from flashsvd.finetune.request import FinetuneRequest
    from flashsvd.results import Calibration

    named = any(value is not None for value in (keep, ranks, plan, rules))
    request = FinetuneRequest(
        model=model,
        out=str(out),
        task=task,
        choice=options.plan_choice(keep, ranks, plan, rules) if named else None,
        method=method,
        calibration=Calibration(calibration, calibration_samples, seed),
        per_head=per_head,
        train=train,
        teacher=teacher,
        tokenizer=tokenizer,
        new_head=new_head,
        distill=distill,
        hidden=hidden,
        labels=labels,
        temperature=temperature,
        epochs=epochs,
        steps=steps,
        batch=batch,
        lr=lr,
        max_length=max_length,
        mask=mask,
        crop=crop,
        eval_every=eval_every,
        samples=samples,
        seed=seed,
        device=device,
        force=force,
        resume=resume,
        keep_checkpoints=keep_checkpoints,
    )
    from flashsvd.finetune.run import finetune as run
    from flashsvd.finetune.run import report_json

    try:
        with progress_bar() as progress:
            report = run(request, progress=progress)
    except Cancelled as stopped:
        print(stopped, file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(report_json(report)))
    else:
        _print(report)


def _print(report: FinetuneReport) -> None:
    for point in report.curve:
        print(f"step {point.step:6,}  {_words(point.metric)}")
    if report.dense is not None:
        print(f"dense        {_words(report.dense)}")
    if report.recovered is not None:
        print(f"{report.recovered:.0%} of what the cut cost is recovered")
    print(
        f"{report.request.out}: {report.trained_parameters:,} parameters trained on {report.train_examples:,} "
        f"examples in {report.seconds:.0f} s"
    )


def _words(metric: Metric) -> str:
    return f"{metric.name} {metric.value:.3f} ({metric.low:.3f}-{metric.high:.3f}, n {metric.n})"
