"""Ranks from what cutting does to the model's predictions on calibration text, chosen on other text.

Two ways to see it: `flashsvd.search.curvature`, one backward pass for every unit and rank at once; and probes, the KL
to the dense model with one slot at a time truncated, which need no gradients. Each gives losses for
`flashsvd.allocate`, again in the context of the plan that they led to; a held-out KL chooses between the plans, uniform
among them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flashsvd.allocate import Budget, Costs, Losses, allocate, losses_from, relative_tails, uniform
from flashsvd.errors import InputError
from flashsvd.models.inputs import Batch
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import ModelShape
from flashsvd.progress import Progress
from flashsvd.ranks import Rank, RankPlan, rank_for_keep
from flashsvd.search.curvature import curvature
from flashsvd.search.judge import Allocation, Judge, chosen_of, judged
from flashsvd.search.text_split import TextSplit
from flashsvd.spectra import Spectra

By = Literal["curvature", "probes"]
_SEARCH_STEPS = 40
_SMALLEST_KEEP = 1e-4


@dataclass(frozen=True)
class Probes:
    """The mean KL to the dense model, in nats, with one slot truncated: by (layer, slot), then by keep."""

    shape: ModelShape
    kl: Mapping[tuple[int, str], Mapping[float, float]]
    seconds: float

    def alphas(self, sigmas: Mapping[tuple[int, str], NDArray[np.float64]]) -> dict[tuple[int, str], float]:
        """α of every slot: KL / relative tail, averaged over the keeps; of a group that shares, each layer's part."""
        tails, out = relative_tails(sigmas), {}
        for layer, slot in self.shape:
            ratios = []
            for keep, kl in self.kl[layer, slot.name].items():
                rank = rank_for_keep(slot, keep)
                tail = 0.0 if rank is None else float(tails[layer, slot.name][:, rank].sum())
                if tail > 0:
                    ratios.append(kl / tail / len(self.shape.group(layer, slot.name)))
            out[layer, slot.name] = float(np.mean(ratios)) if ratios else 0.0
        return out


def probe(
    loaded: LoadedModel,
    spectra: Spectra,
    batches: Sequence[Batch],
    *,
    keeps: Sequence[float] = (0.3,),
    progress: Progress | None = None,
) -> Probes:
    """Truncates one slot at a time (one group, where layers share a factor), to each keep, and measures the KL.

    Raises:
        InputError: no keeps, or one outside (0, 1).
    """
    if not keeps or not all(0 < keep < 1 for keep in keeps):
        raise InputError(f"probes need keeps above 0 and below 1, got {list(keeps)}")
    started = time.perf_counter()
    shape, judge = spectra.shape, Judge(loaded, spectra, batches)
    kl: dict[tuple[int, str], dict[float, float]] = {}
    slots = list(shape)
    for done, (layer, slot) in enumerate(slots):
        if progress:
            progress("Probing the slots", done / len(slots))
        first = shape.group(layer, slot.name)[0]
        kl[layer, slot.name] = (
            kl[first, slot.name]
            if first != layer
            else {keep: judge.kl(_only(shape, layer, slot.name, rank_for_keep(slot, keep))) for keep in keeps}
        )
    return Probes(shape, kl, time.perf_counter() - started)


def uniform_within(shape: ModelShape, costs: Costs, budget: Budget) -> RankPlan | None:
    """The uniform plan of largest keep that fits a budget; None where none does."""
    if costs.of_plan(RankPlan.dense(shape)) <= budget.left:
        return RankPlan.dense(shape)
    low, high = _SMALLEST_KEEP, 1.0
    if costs.of_plan(uniform(shape, low)) > budget.left:
        return None
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        if costs.of_plan(uniform(shape, middle)) <= budget.left:
            low = middle
        else:
            high = middle
    return uniform(shape, low)


def calibrated(
    loaded: LoadedModel,
    spectra: Spectra,
    budget: Budget,
    costs: Costs,
    text: TextSplit,
    *,
    by: By = "curvature",
    rounds: int = 1,
    step: int | None = None,
    dense_losses: Losses | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Allocation:
    """The best plan within a budget, by held-out KL, of: uniform, even tails, calibrated, and calibrated in context.

    The KL that chooses is softened for classifiers (`Judge`); in it the result is never worse than uniform.

    by: "curvature" (gradients) or "probes" (forward passes only). rounds: how often the losses are measured again in
    the context of the last plan. dense_losses: those at the dense model, where they are known from another budget.
    The held-out text chooses and is never measured on otherwise.

    Raises:
        PlanError: the budget is below the least possible plan.
        InputError: `by` is another word.
    """
    if by not in ("curvature", "probes"):
        raise InputError(f"by must be curvature or probes, got {by!r}")
    started = time.perf_counter()
    sigmas, shape = spectra.sigmas(), spectra.shape
    tell = progress or (lambda stage, share: None)
    turns = rounds + 1

    def fit(losses: Losses) -> RankPlan:
        return allocate(shape, losses, costs, budget, step=step)

    def losses_at(turn: int, plan: RankPlan | None) -> Losses:
        part: Progress = lambda stage, share: tell(stage, 0.7 * (turn + share) / turns)  # noqa: E731
        if by == "curvature":
            model = None if plan is None else judge.model(plan)
            return curvature(loaded, spectra, text.probe, model=model, seed=seed + turn, progress=part)
        if plan is None:
            return losses_from(sigmas, probe(loaded, spectra, text.probe, progress=part).alphas(sigmas))
        return losses_from(sigmas, in_context(loaded, spectra, plan, text.probe, progress=part))

    plans: dict[str, RankPlan] = {}
    even = uniform_within(shape, costs, budget)
    if even is not None:
        plans["uniform"] = even
    plans["even tails"] = fit(losses_from(sigmas, dict.fromkeys(sigmas, 1.0)))
    judge = Judge(loaded, spectra, text.held_out)
    losses = losses_at(0, None) if dense_losses is None else dense_losses
    plans[by] = fit(losses)
    for turn in range(1, turns):
        there = losses_at(turn, list(plans.values())[-1])
        plans[f"{by} in context {turn}"] = fit(there)
        losses = {key: losses[key] + there[key] for key in losses}
        plans[f"{by} blended {turn}"] = fit(losses)
    found = judged(plans, judge, lambda share: tell("Choosing on held-out text", 0.7 + 0.3 * share))
    tell("Done", 1.0)
    return chosen_of(found, time.perf_counter() - started)


def in_context(
    loaded: LoadedModel,
    spectra: Spectra,
    plan: RankPlan,
    batches: Sequence[Batch],
    *,
    factor: float = 0.7,
    progress: Progress | None = None,
) -> dict[tuple[int, str], float]:
    """α of every slot where a plan is: the KL gained by cutting its ranks to `factor`, per relative tail cut off.

    A slot that the plan keeps dense is cut to `factor` of break-even; a slot that cannot be cut has α 0.
    """
    tails, shape = relative_tails(spectra.sigmas()), spectra.shape
    judge = Judge(loaded, spectra, batches)
    here = judge.kl(plan)
    out: dict[tuple[int, str], float] = {}
    slots = list(shape)
    for done, (layer, slot) in enumerate(slots):
        if progress:
            progress("Probing in context", done / len(slots))
        group, key = shape.group(layer, slot.name), (layer, slot.name)
        if group[0] != layer:
            out[key] = out[group[0], slot.name]
            continue
        before = plan.get(layer, slot.name)
        after = tuple(max(1, int(factor * (slot.break_even if rank is None else rank))) for rank in before)
        tail = tails[key]
        cut = sum(
            tail[unit, new] - (0.0 if old is None else tail[unit, old])
            for unit, (old, new) in enumerate(zip(before, after, strict=True))
        ) * len(group)
        lost = judge.kl(plan.replace(layer, slot.name, after)) - here if cut > 0 else 0.0
        out[key] = max(0.0, lost) / cut if cut > 0 else 0.0
    return out


def _only(shape: ModelShape, layer: int, name: str, rank: Rank) -> RankPlan:
    units = shape.slot(layer, name).units
    return RankPlan.dense(shape).replace(layer, name, (rank,) * units)
