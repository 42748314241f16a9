"""Methods in a whole model: exact at full rank, of the size that the plan counts, and near to dense as KL sees it."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashsvd.allocate import uniform
from flashsvd.engines.build import build
from flashsvd.engines.modules import HeadLowRankLinear, LowRankLinear
from flashsvd.errors import PlanError
from flashsvd.factors import factorise
from flashsvd.measure.divergence import divergence, log_probabilities
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel, load
from flashsvd.ranks import RankPlan
from flashsvd.spectra import Spectra, compute
from flashsvd.stats.base import NEEDS, Statistics
from flashsvd.stats.collect import collect

METHODS = ("svd", "fwsvd", "asvd", "whiten", "whiten:centred", "basis_sharing", "basis_sharing:group=3")
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def wide(tiny_folder: Path) -> LoadedModel:
    return load(str(tiny_folder), dtype=torch.float64)


@pytest.fixture(scope="module")
def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(200, (6, 30), generator=generator)} for _ in range(3)]


@pytest.fixture(scope="module")
def statistics(wide: LoadedModel, batches: list[dict[str, torch.Tensor]]) -> Statistics:
    return collect(wide, batches, NEEDS)


def _spectra(wide: LoadedModel, method: str, statistics: Statistics) -> Spectra:
    return compute(wide, method_named(method), statistics)


@every_method
def test_at_full_rank_logits_are_the_dense_ones(
    method: str, wide: LoadedModel, batches: list[dict[str, torch.Tensor]], statistics: Statistics
) -> None:
    spectra = _spectra(wide, method, statistics)
    plan = RankPlan.full_rank(spectra.shape)
    model = build(wide, "lowrank", factorise(wide, spectra, plan), plan)
    with torch.inference_mode():
        torch.testing.assert_close(model(**batches[0]).logits, wide.model(**batches[0]).logits)
        first = model.base_model.get_submodule(wide.family.path(0, "up"))
        first.V[0] *= 1.001
        planted = (model(**batches[0]).logits - wide.model(**batches[0]).logits).abs().max()
    assert planted > 1e-6


@every_method
@settings(max_examples=12)
@given(data=st.data())
def test_a_model_has_as_many_parameters_as_its_plan_counts(
    method: str, data: st.DataObject, wide: LoadedModel, statistics: Statistics
) -> None:
    spectra = _spectra(wide, method, statistics)
    chosen: dict[tuple[int, str, int], int | None] = {}
    for layer, slot in spectra.shape:
        first = spectra.shape.group(layer, slot.name)[0]
        for unit in range(slot.units):
            chosen[layer, slot.name, unit] = (
                chosen[first, slot.name, unit]
                if first != layer
                else data.draw(st.integers(1, slot.full_rank) | st.none())
            )
    plan = RankPlan.build(spectra.shape, lambda layer, slot, unit: chosen[layer, slot.name, unit])
    assert plan.kept_parameters <= plan.shape.dense_parameters
    model = build(wide, "lowrank", factorise(wide, spectra, plan), plan)
    held: dict[int, int] = {}
    for layer, slot in plan.shape:
        module = model.base_model.get_submodule(wide.family.path(layer, slot.name))
        parts = (
            [module.U, module.V] if isinstance(module, LowRankLinear | HeadLowRankLinear) else [module.weight]
        )
        held |= {part.data_ptr(): part.numel() for part in parts}
    # A dense head among factored ones is stored as itself times an identity, which the plan does not count.
    identities = sum(
        slot.unit_out**2
        for layer, slot in plan.shape
        for rank in plan.get(layer, slot.name)
        if rank is None and any(plan.get(layer, slot.name))
    )
    assert sum(held.values()) - identities == plan.kept_parameters


@every_method
def test_keep_is_kept_and_kl_is_not_below_zero(
    method: str, wide: LoadedModel, batches: list[dict[str, torch.Tensor]], statistics: Statistics
) -> None:
    spectra = _spectra(wide, method, statistics)
    dense = log_probabilities(wide.model, batches)
    for keep in (0.3, 0.7):
        plan = uniform(spectra.shape, keep)
        assert plan.kept_parameters <= keep * plan.shape.dense_parameters + 1e-6
        model = build(wide, "lowrank", factorise(wide, spectra, plan), plan)
        apart = divergence(dense, log_probabilities(model, batches))
        assert (apart.kl >= 0).all() and apart.kl.mean() > 1e-9
    same = divergence(dense, log_probabilities(wide.model, batches))
    assert same.kl.max() == 0 and same.agrees.all()


def test_layers_that_share_hold_one_right_factor(wide: LoadedModel, statistics: Statistics) -> None:
    spectra = _spectra(wide, "basis_sharing", statistics)
    plan = uniform(spectra.shape, 0.4)
    factors = factorise(wide, spectra, plan)
    assert factors[0, "q"].v is factors[1, "q"].v
    assert factors[0, "q"].v is not factors[2, "q"].v
    assert factors[0, "o"].v is not factors[1, "o"].v
    with pytest.raises(PlanError, match="share a basis: give them equal ranks"):
        RankPlan.from_text(plan.shape, "L1.q: 8 L2.q: 9")
    assert plan.replace(1, "q", (5,)).get(0, "q") == (5,)
    with pytest.raises(PlanError, match="do not share layers alike"):
        other = uniform(wide.shape.with_per_head(False), 0.4)
        factorise(wide, spectra, other)
    again = RankPlan.from_json(plan.to_json())
    assert again == plan and again.kept_parameters == plan.kept_parameters


def test_a_shape_that_shares_with_layers_unlike_it_is_malformed(wide: LoadedModel) -> None:
    shape = method_named("basis_sharing").shape(wide.shape)
    data = shape.to_json()
    data["layers"][0][0]["sharing"] = 3
    with pytest.raises(PlanError, match="malformed"):
        type(shape).from_json(data)
