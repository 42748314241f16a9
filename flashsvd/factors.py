"""Spectrum + RankPlan -> the two factors of every matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flashsvd.errors import PlanError
from flashsvd.methods.base import Spectrum
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import Slot
from flashsvd.ranks import Rank, RankPlan
from flashsvd.spectra import Spectra, weight_of


@dataclass(frozen=True)
class LowRank:
    """W ≈ U·V of one slot.

    A slot without heads: u [out, k], v [k, in]. A slot with heads: v [R, in] and u [rows, head_dim], where head i
    is p[:, its columns] @ u[its rows] with p = x·vᵀ; per head both are packed by `ranks`, and a whole matrix
    (`shared`) has one v [k, in] for all heads and u stacked head by head. `shift` [out] is added to the bias: what
    the cut takes from the mean output, for methods that know the mean of the inputs.
    """

    u: torch.Tensor
    v: torch.Tensor
    ranks: tuple[int, ...]
    shared: bool = False
    shift: torch.Tensor | None = None


Factors = Mapping[tuple[int, str], LowRank]
"""Factors by (layer, slot name). A slot that is missing stays dense."""


def layout_ranks(slot: Slot, ranks: tuple[Rank, ...]) -> tuple[int, ...] | None:
    """The rank each head's factor really has, one per head (one in all for a slot without heads).

    None where the whole slot stays dense. A dense unit among low-rank ones is stored as its own weight times an
    identity, rank `unit_out`: exact, and only ever one small block.
    """
    if all(rank is None for rank in ranks):
        return None
    stored = tuple(slot.unit_out if rank is None else rank for rank in ranks)
    return stored * slot.heads if slot.heads and slot.units == 1 else stored


def factorise(loaded: LoadedModel, spectra: Spectra, plan: RankPlan) -> dict[tuple[int, str], LowRank]:
    """Slices every spectrum at the plan's ranks, in the model's dtype and on its device.

    Layers that share a basis hold the same tensor v.

    Raises:
        PlanError: the plan is for another model, for the other choice of per head or whole matrix, or for another
            sharing of layers.
    """
    plan.check_fits(loaded.shape)
    if plan.shape.per_head != spectra.shape.per_head:
        words = {True: "per head", False: "for whole matrices"}
        raise PlanError(
            f"the plan is {words[plan.shape.per_head]} but the spectra are {words[spectra.shape.per_head]}: "
            "load the model the way the plan was made"
        )
    if [slot.sharing for _, slot in plan.shape] != [slot.sharing for _, slot in spectra.shape]:
        raise PlanError(
            f"the plan and the spectra ({spectra.method}) do not share layers alike: make the plan for spectra.shape"
        )
    factors: dict[tuple[int, str], LowRank] = {}
    for layer, slot in plan.shape:
        found = factor_slot(
            slot,
            spectra.by_slot[layer, slot.name],
            plan.get(layer, slot.name),
            weight_of(loaded, layer, slot),
        )
        if found is None:
            continue
        first = plan.shape.group(layer, slot.name)[0]
        factors[layer, slot.name] = (
            found if first == layer else dataclasses.replace(found, v=factors[first, slot.name].v)
        )
    return factors


def factor_slot(
    slot: Slot, spectrum: Spectrum, ranks: tuple[Rank, ...], weight: torch.Tensor
) -> LowRank | None:
    """The factors of one slot at these ranks, one per unit; None where all of it is dense.

    weight: [out, in], what dense units keep, and whose dtype and device the factors take.
    """
    stored = layout_ranks(slot, ranks)
    if stored is None:
        return None
    dense = weight.reshape(slot.units, slot.unit_out, slot.in_features)
    pairs = []
    for unit, rank in enumerate(ranks):
        if rank is None:
            identity = torch.eye(slot.unit_out, dtype=dense.dtype, device=dense.device)
            pairs.append((identity, dense[unit]))
        else:
            pairs.append(spectrum.factors(unit, rank))
    packed = _pack(slot, pairs, stored, weight)
    if spectrum.mean is None:
        return packed
    lost = weight.double() - reconstruct(slot, packed).double()
    return dataclasses.replace(packed, shift=(lost @ spectrum.mean.to(lost)).to(weight))


def _pack(
    slot: Slot, pairs: list[tuple[torch.Tensor, torch.Tensor]], stored: tuple[int, ...], like: torch.Tensor
) -> LowRank:
    v = torch.cat([right for _, right in pairs]).to(like)
    if not slot.heads:
        return LowRank(pairs[0][0].to(like).contiguous(), v, stored)
    if slot.per_head:
        return LowRank(torch.cat([left.T for left, _ in pairs]).to(like).contiguous(), v, stored)
    heads = pairs[0][0].unflatten(0, (slot.heads, -1)).transpose(1, 2)
    return LowRank(heads.flatten(0, 1).to(like).contiguous(), v, stored, shared=True)


def reconstruct(slot: Slot, factor: LowRank) -> torch.Tensor:
    """The dense weight [out, in] that the factors stand for."""
    if not slot.heads:
        return factor.u @ factor.v
    if factor.shared:
        blocks = factor.u.unflatten(0, (slot.heads, -1)).transpose(1, 2)
        return blocks.flatten(0, 1) @ factor.v
    lefts, rights = factor.u.split(list(factor.ranks)), factor.v.split(list(factor.ranks))
    return torch.cat([left.T @ right for left, right in zip(lefts, rights, strict=True)])
