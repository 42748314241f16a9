"""Adaptive rank selection: masks are prefixes, the budget is met, and what it learns helps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashsvd.allocate import Budget, Costs
from flashsvd.errors import InputError, NonFiniteError, PlanError
from flashsvd.methods import method_named
from flashsvd.ranks import RankPlan
from flashsvd.search.ars import _masked, _masks, _set_masks, _soft_ranks, ars, train_masks
from flashsvd.search.calibrate import uniform_within
from flashsvd.search.judge import Judge
from flashsvd.search.text_split import TextSplit, to_batches
from flashsvd.spectra import Spectra, compute

if TYPE_CHECKING:
    from flashsvd.models.load import LoadedModel

COSTS = Costs.parameters()


def random_rows(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(1, 200, (8,), generator=generator),
            "attention_mask": torch.ones(8, dtype=torch.long),
            "labels": torch.randint(0, 5, (), generator=generator),
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def spectra(tiny: LoadedModel) -> Spectra:
    return compute(tiny, method_named("svd"))


@given(
    st.lists(st.tuples(st.floats(-4, 4), st.floats(1, 60), st.floats(1, 200)), min_size=1, max_size=20),
    st.floats(0.05, 0.95),
)
@settings(max_examples=40)
def test_soft_ranks_cost_the_budget_whatever_the_logits(rows: list, share: float) -> None:
    theta, ceilings, prices = torch.tensor(rows, dtype=torch.float64).T
    budget = share * float((ceilings * prices).sum())
    theta.requires_grad_()
    ranks = _soft_ranks(theta, ceilings, prices, budget)
    assert float((ranks * prices).sum().detach()) == pytest.approx(budget, rel=1e-6)
    # Moving logits moves ranks from unit to unit, and spends nothing: the gradient of the cost is 0.
    (gradient,) = torch.autograd.grad((ranks * prices).sum(), theta)
    assert float(gradient.abs().max()) < 1e-6 * budget


def test_masks_are_prefixes_and_open_at_break_even(tiny: LoadedModel, spectra: Spectra) -> None:
    units = _masks(spectra, COSTS)
    ceilings = torch.tensor([unit.break_even for unit in units], dtype=torch.float64)
    with _masked(tiny, spectra) as (model, modules):
        noise = torch.randn(len(units), dtype=torch.float64)
        _set_masks(modules, units, ceilings * 0.4, ceilings * 0.05, noise, tiny.device)
        for module in modules.values():
            assert module.mask is not None
            rows = module.mask.unflatten(0, (len(module.u), -1))
            assert (rows.diff(dim=-1) <= 0).all()
        _set_masks(modules, units, ceilings * 1.5, ceilings * 0.02, torch.zeros(len(units)), tiny.device)
        ids = torch.arange(1, 9)[None]
        torch.testing.assert_close(
            model(input_ids=ids).logits, tiny.model(input_ids=ids).logits, atol=2e-3, rtol=2e-3
        )


@pytest.mark.parametrize("keep", [0.25, 0.6])
@pytest.mark.parametrize("kind", ["parameters", "bytes"])
def test_the_plan_is_within_the_budget_and_uses_it(
    tiny: LoadedModel, spectra: Spectra, keep: float, kind: str
) -> None:
    costs = COSTS if kind == "parameters" else Costs.bytes("fp16")
    scale = 1 if kind == "parameters" else 2
    budget = Budget(kind, scale * keep * spectra.shape.dense_parameters)  # type: ignore[arg-type]
    plan = train_masks(tiny, spectra, budget, costs, to_batches(random_rows(16)), steps=3)
    assert 0.93 * budget.value < costs.of_plan(plan) <= budget.value


def test_it_learns_and_is_the_same_for_a_seed(tiny: LoadedModel, spectra: Spectra) -> None:
    text = TextSplit.of_rows(random_rows(96), probe=48, seed=0)
    budget = Budget.of_keep(spectra.shape, 0.45)
    plans = [
        train_masks(tiny, spectra, budget, COSTS, text.probe, steps=40, learning_rate=0.15) for _ in range(2)
    ]
    assert plans[0] == plans[1]
    judge = Judge(tiny, spectra, text.probe)
    even = uniform_within(spectra.shape, COSTS, budget)
    assert even is not None
    assert judge.kl(plans[0]) < judge.kl(even)


def test_labels_can_teach_it(tiny: LoadedModel, spectra: Spectra) -> None:
    budget = Budget.of_keep(spectra.shape, 0.5)
    batches = to_batches(random_rows(16))
    plan = train_masks(tiny, spectra, budget, COSTS, batches, steps=4, learn="labels")
    assert plan.kept_parameters <= budget.value
    bare = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    with pytest.raises(InputError, match="use distil"):
        train_masks(tiny, spectra, budget, COSTS, bare, steps=1, learn="labels")


def test_a_loss_that_is_not_finite_stops_it(tiny: LoadedModel, spectra: Spectra) -> None:
    broken = dict(spectra.by_slot)
    spectrum = broken[1, "up"]
    broken[1, "up"] = replace(spectrum, u=spectrum.u * float("nan"))
    budget = Budget.of_keep(spectra.shape, 0.5)
    with pytest.raises(NonFiniteError, match="step 1 of the masks"):
        train_masks(
            tiny, replace(spectra, by_slot=broken), budget, COSTS, to_batches(random_rows(4)), steps=2
        )


def test_what_it_cannot_do_is_said(tiny: LoadedModel, spectra: Spectra) -> None:
    batches = to_batches(random_rows(4))
    with pytest.raises(InputError, match="for milliseconds use calibrated"):
        train_masks(tiny, spectra, Budget("latency_ms", 1.0), COSTS, batches)
    with pytest.raises(PlanError, match="the least possible is"):
        train_masks(tiny, spectra, Budget("parameters", 9), COSTS, batches)
    with pytest.raises(InputError, match="at least one step"):
        train_masks(tiny, spectra, Budget.of_keep(spectra.shape, 0.5), COSTS, batches, steps=0)
    dense = Budget("parameters", spectra.shape.dense_parameters)
    assert train_masks(tiny, spectra, dense, COSTS, batches) == RankPlan.dense(spectra.shape)


def test_the_choice_is_never_worse_than_uniform(tiny: LoadedModel, spectra: Spectra) -> None:
    text = TextSplit.of_rows(random_rows(24), probe=12, seed=0)
    found = ars(tiny, spectra, Budget.of_keep(spectra.shape, 0.4), COSTS, text, steps=2)
    assert [one.name for one in found.evidence] == ["uniform", "ars"]
    best = min(found.evidence, key=lambda one: one.softened)
    assert (found.chosen, found.plan, found.kl) == (best.name, best.plan, best.kl)
