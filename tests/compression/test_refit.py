"""Refitting left factors: exact where nothing changed, and never worse."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashsvd.compression.refit import refit, refit_slot
from flashsvd.errors import InputError
from flashsvd.factors import Factors, LowRank, factor_slot, factorise, reconstruct
from flashsvd.kernels.gate import relative_error
from flashsvd.methods import method_named
from flashsvd.models.linears import linear_of
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import Slot
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute, decompose_slot, weight_of
from flashsvd.stats.base import InputStats, Statistics
from flashsvd.stats.collect import collect
from tests.small_models import FAMILIES

Text = list[dict[str, torch.Tensor]]
StatsModel = Callable[..., LoadedModel]
MIXED = "*.q: 4 L1.v.h2: 3 L2.v: 5 *.o: 11 L1.up: 12 *.down: 9 L3.k: 2"


def _whitened(loaded: LoadedModel, statistics: Statistics, plan: RankPlan) -> dict[tuple[int, str], LowRank]:
    """Û = the eigenvectors of W·G·Wᵀ, Ŵ = Û_k·Û_kᵀ·W, unit by unit, dense units by an identity."""
    factors = {}
    for layer, slot in plan.shape:
        ranks = plan.get(layer, slot.name)
        if all(rank is None for rank in ranks):
            continue
        weight = weight_of(loaded, layer, slot).double()
        units = weight.reshape(slot.units, slot.unit_out, slot.in_features)
        gram = statistics.by_slot[layer, slot.name].gram
        assert gram is not None
        lefts, rights = [], []
        for unit, rank in zip(units, ranks, strict=True):
            if rank is None:
                lefts.append(torch.eye(slot.unit_out, dtype=torch.float64))
                rights.append(unit)
            else:
                left = torch.linalg.eigh(unit @ gram @ unit.T)[1][:, -rank:]
                lefts.append(left)
                rights.append(left.T @ unit)
        stored = tuple(left.shape[1] for left in lefts)
        if not slot.heads:
            factors[layer, slot.name] = LowRank(lefts[0], rights[0], stored)
        elif slot.per_head:
            u = torch.cat([left.T for left in lefts])
            factors[layer, slot.name] = LowRank(u, torch.cat(rights), stored)
        else:
            heads = lefts[0].unflatten(0, (slot.heads, -1)).transpose(1, 2).flatten(0, 1)
            factors[layer, slot.name] = LowRank(heads, rights[0], stored * slot.heads, shared=True)
    return factors


def _worst_change(before: Factors, after: Factors) -> float:
    return max(relative_error(after[key].u, before[key].u) for key in before)


@pytest.mark.parametrize("per_head", [True, False])
def test_on_the_inputs_it_was_made_for_nothing_changes(
    stats_model: StatsModel, text: Text, tmp_path: Path, per_head: bool
) -> None:
    """The last layer's q, k and v alone are cut: everything upstream is dense."""
    for family in ("bert", "modernbert"):
        loaded = stats_model(family, per_head=per_head)
        plan = RankPlan.from_text(
            loaded.shape, "L3.q: 3 L3.k: 5 L3.v: 2" + (" L3.v.h2: dense" if per_head else "")
        )
        statistics = collect(loaded, text, ["gram"], cache=tmp_path)
        factors = _whitened(loaded, statistics, plan)
        assert _worst_change(factors, refit(loaded, factors, plan, text)) < 1e-9


def test_behind_full_ranks_nothing_changes(loaded: LoadedModel, text: Text, tmp_path: Path) -> None:
    full = RankPlan.full_rank(loaded.shape)
    rows = [list(row) for row in full.ranks]
    rows[2][-1] = (9,)
    plan = RankPlan(loaded.shape, tuple(map(tuple, rows)))
    statistics = collect(loaded, text, ["gram"], cache=tmp_path)
    factors = _whitened(loaded, statistics, plan)
    fitted = refit(loaded, factors, plan, text)
    assert relative_error(fitted[2, "down"].u, factors[2, "down"].u) < 1e-6
    errors = _output_error(loaded, fitted, statistics)
    before = _output_error(loaded, factors, statistics)
    assert errors[2, "down"] == pytest.approx(before[2, "down"], rel=1e-6) and errors[2, "down"] > 1e-6
    assert all(error < 1e-12 for key, error in errors.items() if key != (2, "down"))


def _place(loaded: LoadedModel, key: tuple[int, str]) -> tuple[int, Slot]:
    return key[0], loaded.shape.slot(*key)


def _rebuilt(loaded: LoadedModel, factors: Factors) -> LoadedModel:
    """A dense model of the weights that the factors stand for."""
    model = copy.deepcopy(loaded.model)
    for key, factor in factors.items():
        linear = linear_of(model.base_model, loaded.family, loaded.shape, *key)
        linear.weight.copy_(reconstruct(loaded.shape.slot(*key), factor))
    return dataclasses.replace(loaded, model=model)


def _output_error(loaded: LoadedModel, factors: Factors, inputs: Statistics) -> dict[tuple[int, str], float]:
    errors = {}
    for key, factor in factors.items():
        _, slot = _place(loaded, key)
        lost = weight_of(loaded, key[0], slot) - reconstruct(slot, factor)
        errors[key] = float(((lost @ inputs.by_slot[key].gram) * lost).sum())
    return errors


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_is_the_best_on_the_inputs_it_gets(
    stats_model: StatsModel, text: Text, tmp_path: Path, family: str, per_head: bool
) -> None:
    loaded = stats_model(family, per_head=per_head)
    rules = MIXED if per_head else MIXED.replace(".h2", "")
    plan = RankPlan.from_text(loaded.shape, rules)
    factors = _whitened(loaded, collect(loaded, text, ["gram"], cache=tmp_path), plan)
    fitted = refit(loaded, factors, plan, iter(text))
    assert list(fitted) == list(factors)
    inputs = collect(_rebuilt(loaded, fitted), text, ["gram"], cache=tmp_path)
    before, after = (_output_error(loaded, each, inputs) for each in (factors, fitted))
    assert all(after[key] <= before[key] * (1 + 1e-9) for key in before)
    # The first q, k and v have nothing compressed before them.
    assert sum(after[key] < 0.99 * before[key] for key in before) > len(before) / 2
    for key, factor in fitted.items():
        assert factor.v is factors[key].v and factor.ranks == factors[key].ranks
        layer, slot = _place(loaded, key)
        ranks = plan.get(*key)
        # Normal equations: what is left of the outputs is orthogonal to what V sees.
        weight, gram = weight_of(loaded, layer, slot), inputs.by_slot[key].gram
        rows = ((weight - reconstruct(slot, factor)) @ gram).unflatten(0, (slot.units, -1))
        rights = factor.v.split(list(factor.ranks)) if slot.units > 1 else [factor.v]
        for row, right, rank in zip(rows, rights, ranks, strict=True):
            if rank is not None:
                assert (row @ right.T).norm() < 1e-6 * (weight @ gram).norm() * right.norm()
    if per_head:
        # Dense units among low-rank ones stay what they are.
        assert plan.get(0, "v") == (None, 3, None, None)[: loaded.shape.kv_heads]
        slot = loaded.shape.slot(0, "v")
        rebuilt = reconstruct(slot, fitted[0, "v"]).unflatten(0, (slot.units, -1))[0]
        assert torch.equal(rebuilt, weight_of(loaded, 0, slot).unflatten(0, (slot.units, -1))[0])


def test_a_shared_basis_stays_shared(stats_model: StatsModel, text: Text, tmp_path: Path) -> None:
    loaded, method = stats_model("llama"), method_named("basis_sharing")
    statistics = collect(loaded, text, method.needs, cache=tmp_path)
    spectra = compute(loaded, method, statistics, cache=tmp_path)
    plan = RankPlan.build(spectra.shape, lambda layer, slot, unit: 4)
    factors = factorise(loaded, spectra, plan)
    fitted = refit(loaded, factors, plan, text)
    inputs = collect(_rebuilt(loaded, fitted), text, ["gram"], cache=tmp_path)
    before, after = (_output_error(loaded, each, inputs) for each in (factors, fitted))
    assert all(after[key] <= before[key] * (1 + 1e-9) for key in before)
    shared = [name for name in method.shared_slots if (1, name) in fitted]
    assert shared and all(fitted[0, name].v is fitted[1, name].v for name in shared)


def test_no_batches(stats_model: StatsModel) -> None:
    loaded = stats_model("bert")
    with pytest.raises(InputError, match="no batches"):
        refit(loaded, {}, RankPlan.dense(loaded.shape), [])


# One slot


def _stats(x: torch.Tensor) -> InputStats:
    return InputStats(len(x), gram=x.T @ x, mean=x.mean(0))


def _squared(weight: torch.Tensor, slot: Slot, factor: LowRank, x: torch.Tensor) -> float:
    lost = (
        x
        @ (
            weight - reconstruct(slot, dataclasses.replace(factor, u=factor.u.double(), v=factor.v.double()))
        ).T
    )
    return float((lost if factor.shift is None else lost - factor.shift.double()).square().sum())


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    heads=st.sampled_from([0, 3]),
    per_head=st.booleans(),
    tokens=st.integers(1, 40),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    method=st.sampled_from(["svd", "whiten", "whiten:centred"]),
    spread=st.floats(0, 6),
    same=st.booleans(),
)
def test_a_linear_never_gets_worse(
    seed: int,
    heads: int,
    per_head: bool,
    tokens: int,
    dtype: torch.dtype,
    method: str,
    spread: float,
    same: bool,
) -> None:
    """Also with fewer tokens than inputs, channels that differ by orders of magnitude, and rounded factors."""
    generator = torch.Generator().manual_seed(seed)
    slot = Slot("q", 12, 16, heads=heads, per_head=per_head)
    scale = 10 ** (spread * torch.rand(16, generator=generator, dtype=torch.float64) - spread)
    made, got = (
        torch.randn(size, 16, generator=generator, dtype=torch.float64) * scale + scale
        for size in (30, tokens)
    )
    got = made if same else got
    weight = torch.randn(12, 16, generator=generator, dtype=torch.float64).to(dtype)
    ranks = (2, None, 1) if slot.units > 1 else (5,)
    spectrum = decompose_slot(weight, slot, method_named(method), _stats(made))
    factor = factor_slot(slot, spectrum, ranks, weight)
    assert factor is not None
    fitted = refit_slot(slot, factor, ranks, weight, _stats(got))
    before, after = (_squared(weight.double(), slot, each, got) for each in (factor, fitted))
    size = float((got @ weight.double().T).square().sum())
    shift_rounding = 0.0 if factor.shift is None else torch.finfo(dtype).eps ** 2
    assert after <= before + (1e-12 + shift_rounding) * size
    assert fitted.u.dtype == dtype and fitted.u.shape == factor.u.shape


@pytest.mark.parametrize("method", ["whiten", "whiten:centred"])
def test_a_slot_at_its_optimum_stays(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 16, generator=generator, dtype=torch.float64) + 1
    weight = torch.randn(12, 16, generator=generator, dtype=torch.float64)
    slot = Slot("up", 12, 16)
    factor = factor_slot(slot, decompose_slot(weight, slot, method_named(method), _stats(x)), (5,), weight)
    assert factor is not None
    fitted = refit_slot(slot, factor, (5,), weight, _stats(x))
    assert relative_error(fitted.u, factor.u) < 1e-9
    if factor.shift is not None:
        assert fitted.shift is not None and relative_error(fitted.shift, factor.shift) < 1e-9
    # The other inputs of the same linear move it.
    other = torch.randn(50, 16, generator=generator, dtype=torch.float64) * torch.arange(16)
    assert relative_error(refit_slot(slot, factor, (5,), weight, _stats(other)).u, factor.u) > 1e-2


def test_what_the_inputs_have_not_seen_stays() -> None:
    """Inputs of rank 2 say nothing of the other directions of U: the formula's pseudo-inverse would drop them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(12, 16, generator=generator, dtype=torch.float64)
    u = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    v = torch.randn(5, 16, generator=generator, dtype=torch.float64)
    slot, factor = Slot("up", 12, 16), LowRank(u, v, (5,))
    fitted = refit_slot(slot, factor, (5,), weight, _stats(x))
    assert relative_error(x @ v.T @ fitted.u.T, x @ weight.T) < 1e-9
    unseen = torch.linalg.svd(x @ v.T)[2][2:]
    assert relative_error(fitted.u @ unseen.T, u @ unseen.T) < 1e-9
    assert (fitted.u @ unseen.T).norm() > 1


def test_factors_that_happen_to_be_rounded_well_stay() -> None:
    """Where rows of V are much alike, the nearest bf16 numbers to the best U are not the best bf16 numbers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 16, generator=generator, dtype=torch.float64)
    row = torch.randn(16, generator=generator, dtype=torch.float64)
    v = torch.stack([row, row + 0.05 * torch.randn(16, generator=generator, dtype=torch.float64)]).bfloat16()
    weight = (torch.randn(1, 2, generator=generator, dtype=torch.float64) @ v.double()).bfloat16()
    slot = Slot("up", 1, 16)

    def error(u: torch.Tensor) -> float:
        return _squared(weight.double(), slot, LowRank(u, v, (2,)), x)

    best = torch.linalg.lstsq(x @ v.double().T, x @ weight.double().T).solution.T
    nearby = [best.bfloat16() + torch.tensor([[i, j]]) * 2**-9 for i in range(-2, 3) for j in range(-2, 3)]
    u = min((near.bfloat16() for near in nearby), key=error)
    assert error(u) < 0.9 * error(best.bfloat16())
    assert torch.equal(refit_slot(slot, LowRank(u, v, (2,)), (2,), weight, _stats(x)).u, u)
