"""`budget`: the best plan for an amount, or the smallest one that loses little enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashsvd.cli import options
from flashsvd.cli.progress import progress_bar
from flashsvd.errors import InputError, format_bytes

if TYPE_CHECKING:
    from flashsvd.ranks import RankPlan
    from flashsvd.results import Metric
    from flashsvd.search.budget import BudgetAnswer
    from flashsvd.search.smallest import Smallest


def budget(
    model: options.Model,
    parameters: Annotated[
        str | None, typer.Option(help="Parameters of the whole model at most, such as 3M.")
    ] = None,
    bytes_: Annotated[
        str | None, typer.Option("--bytes", help="Bytes of its weights at most, such as 8GB or 500MiB.")
    ] = None,
    flops: Annotated[
        str | None, typer.Option(help="FLOPs of the factored linears per token at most, such as 5M.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option(help="Milliseconds of a forward pass of --batch and --seq at most, here.")
    ] = None,
    max_loss: Annotated[
        str | None,
        typer.Option(
            help="Instead: the smallest model that loses at most this, such as 1% (or 0.05 nats of KL)."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What --max-loss is of: accuracy, in points; perplexity, as a rise in percent; or kl, in nats. "
            "The model's own score if left out."
        ),
    ] = None,
    allocator: options.Allocator = "calibrated",
    method: options.Method = "svd",
    out: Annotated[Path | None, typer.Option(help="Write the plan as JSON.")] = None,
    per_head: options.PerHead = True,
    step: Annotated[
        int | None, typer.Option(help="Between the ranks tried; 16, or less for small matrices, if left out.")
    ] = None,
    batch: options.Batch = 8,
    seq: options.Seq = 128,
    calibration: options.CalibrationText = None,
    calibration_samples: options.CalibrationSamples = 512,
    dtype: options.Dtype = "fp32",
    device: options.Device = "auto",
    samples: options.Samples = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Find ranks for a budget of parameters, bytes, FLOPs or milliseconds, or for a loss."""
    kind, amount = _asked(parameters, bytes_, flops, latency_ms, max_loss, metric)
    from flashsvd.results import Calibration, to_json
    from flashsvd.search.budget import Setting, plan_for_budget
    from flashsvd.search.smallest import smallest_within

    setting = Setting(
        model=model,
        method=method,
        allocator=allocator,
        per_head=per_head,
        dtype=dtype,
        device=device,
        calibration=Calibration(calibration, calibration_samples, seed),
        samples=samples,
        batch=batch,
        seq=seq,
        step=step,
        seed=seed,
    )
    result: BudgetAnswer | Smallest
    with progress_bar() as progress:
        if kind == "max_loss":
            result = smallest_within(setting, amount, metric=metric, progress=progress)  # type: ignore[arg-type]
        else:
            result = plan_for_budget(setting, kind, amount, progress=progress)
    if out is not None and result.plan is not None:
        _write(out, result.plan)
    if as_json:
        print(json.dumps(to_json(result)))
    elif kind == "max_loss":
        _print_smallest(result)  # type: ignore[arg-type]
    else:
        _print_answer(result)  # type: ignore[arg-type]
    if out is not None and not as_json and result.plan is not None:
        print(f"wrote {out}")


def _asked(
    parameters: str | None,
    bytes_: str | None,
    flops: str | None,
    latency_ms: float | None,
    max_loss: str | None,
    metric: str | None,
) -> tuple[Any, float]:
    """The one budget that was given, as its kind and amount."""
    from flashsvd.allocate.amounts import parse_bytes, parse_count, parse_share

    given = {
        "--parameters": parameters,
        "--bytes": bytes_,
        "--flops": flops,
        "--latency-ms": latency_ms,
        "--max-loss": max_loss,
    }
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise InputError(
            f"give one of {', '.join(given)}, got {' and '.join(named) if named else 'none of them'}"
        )
    if parameters is not None:
        return "parameters", parse_count(parameters, "--parameters")
    if bytes_ is not None:
        return "bytes", parse_bytes(bytes_, "--bytes")
    if flops is not None:
        return "flops", parse_count(flops, "--flops")
    if latency_ms is not None:
        if not latency_ms > 0:
            raise InputError(f"--latency-ms must be above 0, got {latency_ms:g}")
        return "latency_ms", latency_ms
    assert max_loss is not None
    if metric != "kl":
        return "max_loss", parse_share(max_loss, "--max-loss")
    try:
        return "max_loss", float(max_loss)
    except ValueError:
        raise InputError(f"--max-loss with --metric kl takes nats such as 0.05, got {max_loss!r}") from None


def _write(out: Path, plan: RankPlan) -> None:
    try:
        out.write_text(json.dumps(plan.to_json()) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the plan {out}: {error}") from None


def _print_answer(result: BudgetAnswer) -> None:
    print(result.plan.summary())
    print(
        f"{result.kind}: asked {_amount(result.kind, result.asked)}, got {_amount(result.kind, result.got)}, "
        f"dense {_amount(result.kind, result.dense)}"
    )
    if result.latency_ms and result.dense_latency_ms:
        print(
            f"measured {result.latency_ms.p50:.2f} ms ({result.latency_ms.p20:.2f}-{result.latency_ms.p80:.2f}), "
            f"dense {result.dense_latency_ms.p50:.2f} ms"
        )
    if result.kl is not None:
        against = "no uniform plan fits" if result.uniform_kl is None else f"uniform {result.uniform_kl:.4g}"
        print(f"held-out KL {result.kl:.4g} nats, {against}; chosen: {result.chosen}")
        for row in result.candidates:
            print(f"  {row.name:<24} keep {row.keep:.3f}  KL {row.kl:.4g}")
    if result.score and result.dense_score:
        print(f"{result.score.name} {_metric(result.score)}, dense {_metric(result.dense_score)}")
    print(f"{result.seconds:.0f} s")


def _print_smallest(result: Smallest) -> None:
    words = {
        "accuracy": f"at most {result.limit:.1%} of accuracy lost",
        "perplexity": f"perplexity at most {result.limit:.1%} over dense",
        "kl": f"at most {result.limit:g} nats of KL lost",
    }[result.metric]
    print(f"{'keep':>6}  {'parameters':>11}  {'KL':>8}  {result.dense.name} (95 %)")
    for row in result.tried:
        verdict = "passes" if row.passes else "fails"
        score = _metric(row.score) if row.score else ""
        kl = "" if row.kl is None else f"{row.kl:.4f}"
        print(f"{row.keep:6.3f}  {row.kept_parameters:11,}  {kl:>8}  {score}  {verdict}")
    print(f"dense {_metric(result.dense)}")
    if result.plan is None or result.passes is None:
        print(f"not reachable with {words}: the best is keep {result.best.keep:.3f}")
        return
    below = (
        "nothing smaller was tried" if result.fails is None else f"keep {result.fails.keep:.3f} loses more"
    )
    print(f"smallest with {words}: keep {result.passes.keep:.3f}; {below}")
    print(result.plan.summary())
    print(f"{result.seconds:.0f} s")


def _amount(kind: str, value: float) -> str:
    if kind == "bytes":
        return format_bytes(value)
    return f"{value:.2f} ms" if kind == "latency_ms" else f"{value:,.0f}"


def _metric(metric: Metric) -> str:
    return f"{metric.value:.3f} ({metric.low:.3f}-{metric.high:.3f}, n {metric.n})"
