"""Adaptive rank selection: ranks by trained masks on the singular values (Gao et al., NAACL 2024, long paper 13).

Weights stay frozen; every unit of W = U·Σ·V runs as U·diag(mask)·Σ·V, and the masks learn from the KL to the dense
model, or from labels. As in the paper a mask is a relaxed Bernoulli variable (Gumbel-sigmoid). Two things are met by
construction where the paper adds penalties. A mask is a prefix: mask_i = sigmoid((ρ - i + τ·noise) / τ) with one soft
rank ρ and one logistic noise per unit, components at or above break-even opening together, as dense does. And the
budget: ρ = break-even · sigmoid(θ + c), with the c at which the soft ranks cost exactly the budget.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, log_softmax

from flashsvd.allocate import Budget, Costs, allocate, choices
from flashsvd.engines.modules import FusedLinear
from flashsvd.errors import InputError, NonFiniteError, PlanError
from flashsvd.methods.base import Spectrum
from flashsvd.models.inputs import Batch
from flashsvd.models.linears import LINEARS, fused_sizes, linear_of
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.search.calibrate import uniform_within
from flashsvd.search.judge import SURE, Allocation, Judge, chosen_of, judged
from flashsvd.search.text_split import TextSplit
from flashsvd.spectra import Spectra
from flashsvd.stats.accumulate import model_inputs, padding_mask, wide
from flashsvd.stats.fisher import gradients

Learn = Literal["distil", "labels"]
_BISECTIONS = 60
_WIDTH = (0.08, 0.02)
"""τ as a share of break-even, at the first step and at the last."""


@dataclass(frozen=True)
class _Masked:
    """One mask: a unit of a slot, in all layers that share the slot's right factor. cost: of one rank, in all."""

    layers: tuple[int, ...]
    slot: str
    unit: int
    break_even: float
    rank: int
    cost: float


class MaskedLinear(nn.Module):
    """y = U·diag(mask)·Σ·V·x + b at full rank; mask [units · p], or None for all ones."""

    def __init__(self, spectrum: Spectrum, rank: int, like: nn.Linear) -> None:
        super().__init__()
        units = len(spectrum.u)
        pairs = [spectrum.factors(unit, rank) for unit in range(units)]
        self.u = torch.stack([left for left, _ in pairs]).to(like.weight)
        self.v = torch.cat([right for _, right in pairs]).to(like.weight)
        # What a cut takes from the mean output goes to the bias, so a masked component falls back to its mean.
        self.mean = None if spectrum.mean is None else linear(spectrum.mean.to(self.v), self.v)
        self.bias = like.bias
        self.mask: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = linear(x, self.v)
        if self.mask is not None:
            mask = self.mask.to(p.dtype)
            p = p * mask if self.mean is None else self.mean + (p - self.mean) * mask
        y = torch.einsum("...ur,umr->...um", p.unflatten(-1, (len(self.u), -1)), self.u).flatten(-2)
        return y if self.bias is None else y + self.bias


def train_masks(
    loaded: LoadedModel,
    spectra: Spectra,
    budget: Budget,
    costs: Costs,
    batches: Sequence[Batch],
    *,
    steps: int = 60,
    learning_rate: float = 0.1,
    temperature: float | None = None,
    learn: Learn = "distil",
    step: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> RankPlan:
    """Ranks within a budget, by Adam on the masks alone; one batch a step, in a seeded order.

    learn: "distil" towards the dense model's softmax at `temperature` (by default 8 for a classifier, which is too sure
    of its training text to teach much at 1, and 1 for what predicts tokens), or towards the batches' own "labels".
    step: the soft ranks are rounded to multiples of it (`flashsvd.allocate.step_of`), within the budget.

    Raises:
        InputError: a latency budget (its costs are no multiple of the rank), no batches or steps, or labels asked for
            that the batches lack.
        PlanError: the budget is below the least possible plan.
        NonFiniteError: the loss is NaN or infinite; the message names the step.
    """
    if budget.kind == "latency_ms":
        raise InputError("ars takes a budget in parameters, bytes or flops: for milliseconds use calibrated")
    if not batches or steps < 1:
        raise InputError(f"ars needs batches and at least one step, got {len(batches)} and {steps}")
    if learn not in ("distil", "labels"):
        raise InputError(f"learn must be distil or labels, got {learn!r}")
    units = _masks(spectra, costs)
    if costs.of_plan(RankPlan.dense(spectra.shape)) <= budget.left:
        return RankPlan.dense(spectra.shape)
    least = costs.of_plan(RankPlan.build(spectra.shape, lambda layer, slot, unit: choices(slot, step)[0]))
    if least > budget.left:
        raise PlanError(
            f"no plan fits {budget.value:,.0f} {budget.kind}: the least possible is {least + budget.fixed:,.0f}"
        )
    device = loaded.device
    generator = torch.Generator().manual_seed(seed)
    ceilings = torch.tensor([unit.break_even for unit in units], dtype=torch.float64)
    prices = torch.tensor([unit.cost for unit in units], dtype=torch.float64)
    theta = torch.zeros(len(units), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=learning_rate)
    order: list[int] = []
    with _masked(loaded, spectra) as (model, modules), gradients():
        for done in range(steps):
            if progress:
                progress("Training the masks", done / steps)
            order = order or torch.randperm(len(batches), generator=generator).tolist()
            number = order.pop()
            ranks = _soft_ranks(theta, ceilings, prices, budget.left)
            width = _WIDTH[0] + (_WIDTH[1] - _WIDTH[0]) * done / max(1, steps - 1)
            noise = torch.rand(len(units), generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
            _set_masks(modules, units, ranks, width * ceilings, noise.logit(), device)
            loss = _loss(loaded, model, batches[number], number, learn, temperature)
            if not torch.isfinite(loss):
                raise NonFiniteError(f"the loss is not finite in step {done + 1} of the masks: use fp32")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        soft = _soft_ranks(theta.detach(), ceilings, prices, budget.left).tolist()
    if progress:
        progress("Training the masks", 1.0)
    return _rounded(spectra, units, soft, costs, budget, step)


def ars(
    loaded: LoadedModel,
    spectra: Spectra,
    budget: Budget,
    costs: Costs,
    text: TextSplit,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Allocation:
    """`train_masks` on the probe text, and a held-out KL that chooses between its plan and uniform.

    options: those of `train_masks`, which also says what is raised.
    """
    started = time.perf_counter()
    tell = progress or (lambda stage, share: None)
    plans = {}
    even = uniform_within(spectra.shape, costs, budget)
    if even is not None:
        plans["uniform"] = even
    plans["ars"] = train_masks(
        loaded,
        spectra,
        budget,
        costs,
        text.probe,
        progress=lambda stage, share: tell(stage, 0.9 * share),
        **options,
    )
    judge = Judge(loaded, spectra, text.held_out)
    found = judged(plans, judge, lambda share: tell("Choosing on held-out text", 0.9 + 0.1 * share))
    return chosen_of(found, time.perf_counter() - started)


def _masks(spectra: Spectra, costs: Costs) -> list[_Masked]:
    shape, found = spectra.shape, []
    for layer, slot in shape:
        group = tuple(shape.group(layer, slot.name))
        if group[0] == layer:
            cost = sum(costs.of_unit(index, slot, None) for index in group) / slot.break_even
            found += [
                _Masked(group, slot.name, unit, slot.break_even, slot.full_rank, cost)
                for unit in range(slot.units)
            ]
    return found


def _soft_ranks(
    theta: torch.Tensor, ceilings: torch.Tensor, prices: torch.Tensor, budget: float
) -> torch.Tensor:
    """ρ = ceiling · sigmoid(θ + c) that cost the budget: c by bisection, its gradient by one Newton step."""
    with torch.no_grad():
        low, high = -60.0 - float(theta.max()), 60.0 - float(theta.min())
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if float((prices * ceilings * torch.sigmoid(theta + middle)).sum()) <= budget:
                low = middle
            else:
                high = middle
        share = torch.sigmoid(theta + low)
        slope = (prices * ceilings * share * (1 - share)).sum().clamp_min(1e-12)
    spent = (prices * ceilings * torch.sigmoid(theta + low)).sum()
    return ceilings * torch.sigmoid(theta + low - (spent - spent.detach()) / slope)


def _set_masks(
    modules: dict[tuple[int, str], MaskedLinear],
    units: Sequence[_Masked],
    ranks: torch.Tensor,
    widths: torch.Tensor,
    noise: torch.Tensor,
    device: torch.device,
) -> None:
    parts: dict[tuple[int, str], list[torch.Tensor]] = {}
    for index, unit in enumerate(units):
        # The middle of component i is at i + ½; those at or above break-even open with dense.
        place = (torch.arange(unit.rank, dtype=torch.float64) + 0.5).clamp_max(unit.break_even)
        mask = torch.sigmoid((ranks[index] - place) / widths[index] + noise[index])
        for layer in unit.layers:
            parts.setdefault((layer, unit.slot), []).append(mask)
    for key, masks in parts.items():
        modules[key].mask = torch.cat(masks).to(device, torch.float32)


def _loss(
    loaded: LoadedModel, model: Any, batch: Batch, number: int, learn: Learn, temperature: float | None
) -> torch.Tensor:
    mask = padding_mask(batch, number, loaded.device)
    inputs = model_inputs(loaded.model, batch, loaded.device)
    mine = wide(model(**inputs).logits)
    labels = batch.get("labels")
    if learn == "labels":
        if labels is None or mine.dim() != 2:
            raise InputError("ars with learn='labels' needs a classifier and batches with labels: use distil")
        return cross_entropy(mine, labels.to(mine.device))
    with torch.no_grad():
        dense = wide(loaded.model(**inputs).logits)
    if mine.dim() == 3:
        mine, dense = mine[mask], dense[mask]
        soft = temperature or 1.0
    else:
        soft = temperature or SURE
    p, q = log_softmax(dense / soft, -1), log_softmax(mine / soft, -1)
    return (p.exp() * (p - q)).sum(-1).mean() * soft**2


@contextmanager
def _masked(
    loaded: LoadedModel, spectra: Spectra
) -> Iterator[tuple[Any, dict[tuple[int, str], MaskedLinear]]]:
    """A model that shares every parameter with the dense one, its factored linears exchanged for masked ones."""
    shared = {id(tensor): tensor for tensor in (*loaded.model.parameters(), *loaded.model.buffers())}
    model: Any = copy.deepcopy(loaded.model, memo=dict(shared))
    base, modules = model.base_model, {}
    for layer, slot in spectra.shape:
        parent_path, _, leaf = loaded.family.path(layer, slot.name).rpartition(".")
        parent = base.get_submodule(parent_path)
        if isinstance(parent, LINEARS):
            parent = FusedLinear(parent, fused_sizes(loaded.family, spectra.shape, layer, slot.name))
            base.set_submodule(parent_path, parent)
        dense = linear_of(loaded.model.base_model, loaded.family, loaded.shape, layer, slot.name)
        assert isinstance(dense, nn.Linear)
        modules[layer, slot.name] = MaskedLinear(
            spectra.by_slot[layer, slot.name], slot.full_rank, dense
        ).eval()
        setattr(parent, leaf, modules[layer, slot.name])
    yield model.eval(), modules


def _rounded(
    spectra: Spectra,
    units: Sequence[_Masked],
    soft: Sequence[float],
    costs: Costs,
    budget: Budget,
    step: int | None,
) -> RankPlan:
    """The plan within the budget nearest below the soft ranks, the largest shortfalls filled first."""
    shortfall: Callable[[_Masked, float], np.ndarray] = lambda unit, rank: (  # noqa: E731
        unit.cost * np.maximum(0.0, rank - np.arange(unit.rank + 1)) ** 2 / len(unit.layers)
    )
    losses = {(layer, slot.name): np.zeros((slot.units, slot.full_rank + 1)) for layer, slot in spectra.shape}
    for unit, rank in zip(units, soft, strict=True):
        for layer in unit.layers:
            losses[layer, unit.slot][unit.unit] = shortfall(unit, rank)
    return allocate(spectra.shape, losses, costs, budget, step=step)
