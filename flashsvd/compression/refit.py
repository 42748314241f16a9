"""Refitting left factors to the inputs that compressed layers really get (SVD-LLM, arXiv 2403.07378, sec. 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import nn

from flashsvd.engines.build import build
from flashsvd.factors import Factors, LowRank, reconstruct
from flashsvd.models.inputs import Batch
from flashsvd.models.linears import linear_of
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import Slot
from flashsvd.progress import Progress
from flashsvd.ranks import Rank, RankPlan
from flashsvd.spectra import weight_of
from flashsvd.stats.accumulate import Taps, input_name, module_of
from flashsvd.stats.base import InputStats, Need
from flashsvd.stats.layerwise import walk

_CUT = 1e-12
"""Directions of V·G·Vᵀ, its diagonal scaled to one, below this part of the largest are left as they are."""


def refit(
    loaded: LoadedModel,
    factors: Factors,
    plan: RankPlan,
    batches: Iterable[Batch],
    *,
    progress: Progress | None = None,
) -> dict[tuple[int, str], LowRank]:
    """The factors with every U fitted anew by least squares; V, ranks and dense units stay.

    In the order of the data: each linear is fitted to the dense one, on the inputs that it gets when everything
    before it is compressed and refitted. Hidden states are kept on disk between layers
    (`flashsvd.stats.layerwise`).

    Raises:
        PlanError: the plan is for another model.
        InputError: no batches, or no room for the hidden states.
        NonFiniteError: NaN or infinity in an input; the message names where.
    """
    plan.check_fits(loaded.shape)
    compressed = build(loaded, "lowrank", factors, plan)
    base = compressed.base_model
    blocks = loaded.family.layers(base)
    fitted = dict(factors)
    for layer in walk(loaded, batches, progress=progress):
        index, block = layer.index, blocks[layer.index]
        slots = plan.shape.layers[index]
        for source in dict.fromkeys(input_name(slots, slot.name) for slot in slots):
            group = [
                slot
                for slot in slots
                if input_name(slots, slot.name) == source and (index, slot.name) in factors
            ]
            if not group:
                continue
            # Any of the group gets the input; the first may be dense within an exchanged linear.
            point = (index, group[0].name)
            needs: set[Need] = {"gram", "mean"}
            with Taps({point: module_of(base, loaded.family, *point)}, needs, brief=True) as taps:
                layer.run(taps, block)
            stats = taps.result(point)
            for slot in group:
                key = (index, slot.name)
                fitted[key] = refit_slot(
                    slot, fitted[key], plan.get(*key), weight_of(loaded, index, slot), stats
                )
                _put(loaded, base, key, fitted[key])
        layer.advance(block=block)
    return fitted


def _put(loaded: LoadedModel, base: nn.Module, key: tuple[int, str], factor: LowRank) -> None:
    module = base.get_submodule(loaded.family.path(*key))
    module.U = nn.Parameter(factor.u, requires_grad=False)
    if factor.shift is not None:
        dense = linear_of(loaded.model.base_model, loaded.family, loaded.shape, *key).bias
        bias = factor.shift + dense if isinstance(dense, torch.Tensor) else factor.shift
        module.bias = nn.Parameter(bias, requires_grad=False)


def refit_slot(
    slot: Slot, factor: LowRank, ranks: tuple[Rank, ...], weight: torch.Tensor, stats: InputStats
) -> LowRank:
    """U ← W·G·Vᵀ·(V·G·Vᵀ)⁺ for every low-rank unit of one slot, with G the Gram of `stats`.

    Written as U + (W - U·V)·G·Vᵀ·(V·G·Vᵀ)⁺, which is the same wherever G has seen V, and leaves U as it is where it
    has not. On inputs for which U is optimal it changes nothing. A shift of the bias is fitted along, to the mean of
    `stats`; G is then the covariance. ranks: those of the plan, one per unit. weight: dense, [out, in].

    The squared error tr((W - U·V)·G·(W - U·V)ᵀ) of a unit is never raised, not by rounding to the factors' dtype
    either.
    """
    assert stats.gram is not None and stats.mean is not None
    gram = stats.gram.to(weight.device)
    mean = stats.mean.to(weight.device)
    if factor.shift is not None:
        gram = gram - stats.tokens * mean.outer(mean)
    dense = weight.double().reshape(slot.units, slot.unit_out, slot.in_features)
    lefts, rights = _unpacked(slot, factor)
    fitted = [
        left if rank is None else _fit(unit, left, right, gram)
        for unit, left, right, rank in zip(dense, lefts, rights, ranks, strict=True)
    ]
    found = dataclasses.replace(factor, u=_packed(slot, factor, fitted))
    if factor.shift is None:
        return found
    whole = dataclasses.replace(found, u=found.u.double(), v=found.v.double())
    lost = weight.double() - reconstruct(slot, whole)
    return dataclasses.replace(found, shift=(lost @ mean).to(factor.shift))


def _fit(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """weight [m, n] float64, left [m, k], right [k, n], gram [n, n] -> left."""
    u, v = left.double(), right.double()
    seen = v @ gram
    # Rows of V differ by orders of magnitude: with a diagonal of ones, small is not the same as unseen.
    inner = seen @ v.T
    size = inner.diagonal().clamp_min(0).sqrt()
    scale = torch.where(size > 0, 1 / size, 0)
    values, vectors = torch.linalg.eigh(scale[:, None] * (inner + inner.T) / 2 * scale)
    kept = values > _CUT * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    basis = scale[:, None] * vectors
    lost = weight - u @ v
    step = (lost @ seen.T) @ (basis / values) @ basis.T
    if len(values) < len(u.T):
        spanned, _ = torch.linalg.qr(size[:, None] * vectors)
        step = step @ spanned @ spanned.T
    moved = (u + step).to(left)
    return moved if _error(weight - moved.double() @ v, gram) < _error(lost, gram) else left


def _error(lost: torch.Tensor, gram: torch.Tensor) -> float:
    return float(((lost @ gram) * lost).sum())


def _unpacked(slot: Slot, factor: LowRank) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Left [m, k] and right [k, n] factor of every unit."""
    if not slot.heads:
        return [factor.u], [factor.v]
    if factor.shared:
        heads = factor.u.unflatten(0, (slot.heads, -1)).transpose(1, 2)
        return [heads.flatten(0, 1)], [factor.v]
    ranks = list(factor.ranks)
    return [left.T for left in factor.u.split(ranks)], list(factor.v.split(ranks))


def _packed(slot: Slot, factor: LowRank, lefts: list[torch.Tensor]) -> torch.Tensor:
    """The u of a LowRank of the same layout."""
    if not slot.heads:
        return lefts[0].contiguous()
    if factor.shared:
        heads = lefts[0].unflatten(0, (slot.heads, -1)).transpose(1, 2)
        return heads.flatten(0, 1).contiguous()
    return torch.cat([left.T for left in lefts]).contiguous()
