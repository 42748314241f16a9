"""How small can a model be and lose at most so much? A budget put backwards, answered by bisection."""

from __future__ import annotations

import time
import typing
from dataclasses import dataclass
from typing import Literal

from flashsvd.allocate import Budget, Costs, Losses
from flashsvd.compare import model_info
from flashsvd.errors import InputError, PlanError
from flashsvd.evaluation.held_out import Scored
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import Metric, ModelInfo
from flashsvd.search.budget import Setting, Tried, allocate_for, prepare
from flashsvd.search.curvature import curvature
from flashsvd.search.scorer import Scorer
from flashsvd.session import Session

_LARGEST_KEEP = 0.95
Loss = Literal["accuracy", "perplexity", "kl"]


@dataclass(frozen=True)
class Smallest:
    """The smallest plan that loses at most `limit`, or none.

    plan is None where no factored plan passes; `best` is then the one that loses least. fails: the largest that was
    tried and failed; passes: the smallest that passed. tried: all, by keep.
    """

    model: ModelInfo
    method: str
    allocator: str
    metric: Loss
    limit: float
    dense: Metric
    plan: RankPlan | None
    passes: Tried | None
    fails: Tried | None
    best: Tried
    tried: tuple[Tried, ...]
    seconds: float


def smallest_within(
    setting: Setting,
    limit: float,
    *,
    metric: Loss | None = None,
    tolerance: float = 0.02,
    smallest_keep: float = 0.05,
    session: Session | None = None,
    progress: Progress | None = None,
) -> Smallest:
    """The smallest keep whose plan loses at most `limit`, by bisection down to a bracket of `tolerance`.

    metric: "accuracy" of a classifier, limit in absolute points (0.01: from 0.92 to 0.91); "perplexity" of a language
    model, limit as a share of the dense one (0.05: from 4.0 to 4.2); or "kl", limit in nats. By default the one of the
    first two that the model has. All on at most `setting.samples` pieces, or windows, of the evaluation set. A score
    comes with its interval: a bracket narrower than that is narrower than what was measured.

    Raises:
        InputError: limit below 0, a tolerance or smallest keep out of range, no samples to score, or a metric that the
            model does not have.
        ModelError: the model has no evaluation set.
    """
    if metric not in (None, *typing.get_args(Loss)):
        raise InputError(f"metric must be {', '.join(typing.get_args(Loss))}, got {metric!r}")
    if not limit >= 0 or not 0 < tolerance < 1 or not 0 < smallest_keep < _LARGEST_KEEP:
        raise InputError(
            f"expected a limit of 0 or more, a tolerance within (0, 1) and a smallest keep within "
            f"(0, {_LARGEST_KEEP}), got {limit:g}, {tolerance:g} and {smallest_keep:g}"
        )
    if setting.samples is not None and setting.samples < 1:
        raise InputError(f"samples must be at least 1 to measure a loss, got {setting.samples}")
    report = progress or (lambda stage, share: None)
    started = time.perf_counter()
    loaded, spectra, text = prepare(setting, session or Session(), report)
    scorer = Scorer.of(loaded, spectra, setting.samples, setting.seed)
    own: Loss = "perplexity" if scorer.dense.name == "perplexity" else "accuracy"
    chosen: Loss = metric or own
    if chosen not in (own, "kl"):
        raise InputError(f"{loaded.name} is scored by {own}, not by {chosen}: use {own} or kl")
    costs = Costs.parameters()
    dense_losses: Losses | None = None
    if setting.allocator == "calibrated" and text is not None:
        dense_losses = curvature(loaded, spectra, text.probe, seed=setting.seed)
    plans: dict[float, RankPlan] = {}
    tried: dict[float, Tried] = {}
    losses: dict[float, float] = {}

    def passes(keep: float) -> bool:
        done, budget = min(0.95, 0.1 + 0.1 * len(tried)), Budget.of_keep(spectra.shape, keep)
        tell: Progress = lambda stage, _: report(f"Keep {keep:.3f}: {stage}", done)  # noqa: E731
        try:
            found = allocate_for(setting, loaded, spectra, budget, costs, text, tell, dense_losses)
        except PlanError:
            # Below what the steps between ranks allow: no such model, so it does not pass.
            return False
        plan = plans[keep] = found.plan
        score = scorer.score(plan)
        lost = _lost(score, scorer.dense, chosen)
        tried[keep] = Tried(
            f"keep {keep:.3f}",
            plan.keep,
            plan.kept_parameters,
            score.kl.value,
            score.metric,
            lost <= limit + 1e-12,
        )
        losses[keep] = lost
        return bool(tried[keep].passes)

    low, high = smallest_keep, _LARGEST_KEEP
    answer: float | None = None
    if passes(high):
        answer = high
        if passes(low):
            answer = low
        while high - low > tolerance and answer != smallest_keep:
            middle = (low + high) / 2
            if passes(middle):
                high = answer = middle
            else:
                low = middle
    report("Done", 1.0)
    rows = tuple(tried[keep] for keep in sorted(tried))
    failed = [row for row in rows if not row.passes]
    if not rows:
        raise PlanError(f"no plan keeps as little as {_LARGEST_KEEP} of the factored linears")
    return Smallest(
        model=model_info(loaded),
        method=spectra.method,
        allocator=setting.allocator,
        metric=chosen,
        limit=limit,
        dense=scorer.dense,
        plan=None if answer is None else plans[answer],
        passes=None if answer is None else tried[answer],
        fails=max(
            (row for row in failed if answer is None or row.keep <= tried[answer].keep),
            key=lambda row: row.keep,
            default=None,
        ),
        best=tried[min(sorted(losses), key=lambda keep: losses[keep])],
        tried=rows,
        seconds=time.perf_counter() - started,
    )


def _lost(score: Scored, dense: Metric, metric: Loss) -> float:
    """In the unit of the limit."""
    if metric == "kl":
        return score.kl.value
    if metric == "perplexity":
        return score.metric.value / dense.value - 1
    return dense.value - score.metric.value
