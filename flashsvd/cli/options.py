"""Options that several commands share, and how they are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from flashsvd.errors import InputError, PlanError
from flashsvd.ranks import RankPlan
from flashsvd.results import PlanChoice

Model = Annotated[str, typer.Argument(help="A bundled name, a preset, a folder or a hub id; see `models`.")]
Method = Annotated[
    str,
    typer.Option(
        help="svd, fwsvd, asvd, whiten or basis_sharing, with options such as asvd:alpha=0.3 or whiten:centred."
    ),
]
CalibrationText = Annotated[
    str | None,
    typer.Option(
        "--calibration", help="A task or file to calibrate on; the model's own calibration set if left out."
    ),
]
CalibrationSamples = Annotated[int, typer.Option(help="Pieces of calibration text at most.")]
Allocator = Annotated[
    str, typer.Option(help="How ranks are chosen: uniform, energy, asvd, calibrated or ars.")
]
Out = Annotated[Path, typer.Argument(help="The folder to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a model that is there.")]
Keep = Annotated[
    float | None,
    typer.Option(
        help="Share of the factored linears' parameters to keep, above 0 to 1; 0.5 if no plan is named."
    ),
]
Ranks = Annotated[
    str | None,
    typer.Option(help="HEAD,FF,OUT: one rank for q, k, v per head, one for feed-forward, one for o."),
]
Plan = Annotated[Path | None, typer.Option(help="A rank plan as JSON.")]
Rules = Annotated[str | None, typer.Option(help="A rank plan as text, such as '*.qkv: 32 L2.up: dense'.")]
PerHead = Annotated[
    bool, typer.Option("--per-head/--whole", help="Factor q, k, v per head, or each as one matrix.")
]
Batch = Annotated[int, typer.Option(help="Sequences in the timed batch.")]
Seq = Annotated[int, typer.Option(help="Tokens in each.")]
Dtype = Annotated[str, typer.Option(help="fp32, fp16 or bf16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Engines = Annotated[str, typer.Option(help="Comma-separated: dense, lowrank, flash.")]
Samples = Annotated[
    int | None,
    typer.Option(
        help="Held-out pieces, or windows of a language model's text, to score at most; 512 or 64 if left out."
    ),
]
Repeats = Annotated[int, typer.Option(help="Timed repeats of each engine at most.")]
Seed = Annotated[int, typer.Option(help="Seed of the drawn samples.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

_PLAN_LIMIT_BYTES = 16 * 2**20


def plan_choice(keep: float | None, ranks: str | None, plan: Path | None, rules: str | None) -> PlanChoice:
    """The plan that the options name; keep 0.5 where they name none.

    Raises:
        InputError: several were given, or ranks are not three whole numbers.
        PlanError: the plan file cannot be read.
    """
    given = [
        name
        for name, value in (("--keep", keep), ("--ranks", ranks), ("--plan", plan), ("--rules", rules))
        if value is not None
    ]
    if len(given) > 1:
        raise InputError(f"give one of --keep, --ranks, --plan and --rules, got {' and '.join(given)}")
    if ranks is not None:
        return PlanChoice(ranks=_three(ranks))
    if plan is not None:
        return PlanChoice(plan=read_plan(plan))
    if rules is not None:
        return PlanChoice(text=rules)
    return PlanChoice(keep=0.5 if keep is None else keep)


def read_plan(path: Path) -> RankPlan:
    """Raises PlanError where the file is missing, too large or no plan."""
    try:
        if path.stat().st_size > _PLAN_LIMIT_BYTES:
            raise PlanError(f"{path} is larger than a plan may be ({_PLAN_LIMIT_BYTES // 2**20} MiB)")
        return RankPlan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read the plan {path}: {error}") from None


def parse_grid(text: str) -> tuple[float, ...]:
    """`0.1:1.0:0.1` (first, last, step) or `0.2,0.5,1` -> values.

    >>> parse_grid("0.1:0.5:0.2")
    (0.1, 0.3, 0.5)

    Raises:
        InputError: neither form, or a step that leads nowhere.
    """
    try:
        if ":" not in text:
            return tuple(float(part) for part in text.split(","))
        first, last, step = (float(part) for part in text.split(":"))
    except ValueError:
        raise InputError(f"--keep takes FIRST:LAST:STEP or a comma-separated list, got {text!r}") from None
    if (
        not (step > 0 and first <= last)
        or not math.isfinite((last - first) / step)
        or (last - first) / step > 1000
    ):
        raise InputError(f"--keep FIRST:LAST:STEP needs FIRST up to LAST in at most 1000 steps, got {text!r}")
    count = math.floor((last - first) / step + 1e-9) + 1
    return tuple(round(first + index * step, 10) for index in range(count))


def parse_methods(text: str) -> tuple[str, ...]:
    """Comma-separated methods, whose options may hold commas too: `name=value` belongs to the method before it.

    >>> parse_methods("svd,whiten:centred,sqrt=cholesky,asvd:alpha=0.3")
    ('svd', 'whiten:centred,sqrt=cholesky', 'asvd:alpha=0.3')

    Raises:
        InputError: no method is named.
    """
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part)
    if not found:
        raise InputError("--method must name at least one method")
    return tuple(dict.fromkeys(found))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers from 0. Raises InputError for anything else.

    >>> parse_seeds("0, 1,2")
    (0, 1, 2)
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = (-1,)
    if min(seeds) < 0:
        raise InputError(f"--calibration-seeds takes whole numbers from 0, such as 0,1,2, got {text!r}")
    return tuple(dict.fromkeys(seeds))


def _three(text: str) -> tuple[int, int, int]:
    try:
        head, feed_forward, output = (int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--ranks takes three whole numbers HEAD,FF,OUT such as 40,240,240, got {text!r}"
        ) from None
    return head, feed_forward, output
