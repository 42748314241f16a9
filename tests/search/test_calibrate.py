"""Calibrated allocation on a tiny model: the curvature is what autograd and the KL say, and the choice is kept."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from flashsvd.allocate import Budget, Costs, total_loss, uniform
from flashsvd.errors import InputError, PlanError
from flashsvd.methods import method_named
from flashsvd.models.load import load
from flashsvd.ranks import RankPlan
from flashsvd.search.allocators import ALLOCATORS, energy_within, plan_for
from flashsvd.search.ars import _masked
from flashsvd.search.calibrate import calibrated, probe, uniform_within
from flashsvd.search.curvature import component_slopes, curvature
from flashsvd.search.judge import Judge, chosen_of, judged
from flashsvd.search.text_split import TextSplit, rows_of, to_batches
from flashsvd.spectra import Spectra, compute
from flashsvd.stats.base import InputStats

if TYPE_CHECKING:
    from pathlib import Path

    from flashsvd.methods.base import Spectrum
    from flashsvd.models.load import LoadedModel

COSTS = Costs.parameters()
_CUT = 56


def random_rows(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(4, 12, (), generator=generator))
        ids = torch.randint(1, 200, (length,), generator=generator)
        rows.append({"input_ids": ids, "attention_mask": torch.ones(length, dtype=torch.long)})
    return rows


@pytest.fixture(scope="module")
def spectra(tiny: LoadedModel) -> Spectra:
    return compute(tiny, method_named("svd"))


@pytest.fixture(scope="module")
def text() -> TextSplit:
    return TextSplit.of_rows(random_rows(48), probe=24, seed=0)


def test_a_split_has_no_sequence_twice() -> None:
    rows = random_rows(20)
    split = TextSplit.of_rows(rows, probe=8, seed=1)
    assert len(rows_of(split.probe)) == 8 and len(rows_of(split.held_out)) == 12
    words = [tuple(row["input_ids"].tolist()) for row in (*rows_of(split.probe), *rows_of(split.held_out))]
    assert sorted(words) == sorted(tuple(row["input_ids"].tolist()) for row in rows)
    assert len(rows_of(TextSplit.of_rows(rows, probe=99, seed=1).probe)) == 10
    with pytest.raises(InputError, match="8 sequences are in both parts"):
        TextSplit(split.probe, split.probe)
    with pytest.raises(InputError, match="raise the calibration samples"):
        TextSplit.of_rows(rows[:1], probe=1, seed=0)


def test_labels_and_padding_go_through_a_split() -> None:
    rows = [row | {"labels": torch.tensor(index)} for index, row in enumerate(random_rows(5))]
    batch = to_batches(rows, size=5)[0]
    assert batch["labels"].shape == (5,)
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()
    back = {int(row["labels"]): row["input_ids"].tolist() for row in rows_of([batch])}
    assert back == {index: row["input_ids"].tolist() for index, row in enumerate(rows)}


def slopes_by_autograd(tiny: LoadedModel, spectra: Spectra, batch: Any, v: torch.Tensor) -> dict:
    """∂(v·logits)/∂mask of one sequence, from a model whose components carry masks."""
    with _masked(tiny, spectra) as (model, modules), torch.enable_grad():
        for module in modules.values():
            module.mask = torch.ones(len(module.v), dtype=module.v.dtype, requires_grad=True)
        (model(**batch).logits * v).sum().backward()
        return {key: module.mask.grad for key, module in modules.items()}


@pytest.mark.parametrize("method", ["svd", "fwsvd"])
def test_component_slopes_are_the_gradient_of_masks(tiny_folder: Path, method: str) -> None:
    wide = load(str(tiny_folder), dtype=torch.float64)
    spectra = compute(wide, method_named("svd"))
    if method == "fwsvd":
        # Another norm, whose components have a scale apart from sigma, and a mean that the bias takes up.
        spectra = replace(
            spectra, by_slot={key: in_another_norm(plain) for key, plain in spectra.by_slot.items()}
        )
    batch = to_batches(random_rows(1, seed=3))[0]
    v = torch.randn(1, 5, dtype=torch.float64)
    expected = slopes_by_autograd(wide, spectra, batch, v)
    seen: dict = {}

    def tap(key: tuple[int, str]) -> Any:
        def look(module: Any, args: Any, output: torch.Tensor) -> None:
            x = args[0].detach()[0]
            output.register_hook(
                lambda g: seen.update({key: component_slopes(spectra.by_slot[key], x, g[0])})
            )

        return look

    base = wide.model.base_model
    taps = [
        base.get_submodule(wide.family.path(layer, slot.name)).register_forward_hook(tap((layer, slot.name)))
        for layer, slot in spectra.shape
    ]
    words = base.embeddings.word_embeddings(batch["input_ids"]).requires_grad_()
    (wide.model(inputs_embeds=words).logits * v).sum().backward()
    for handle in taps:
        handle.remove()
    assert len(seen) == len(spectra.by_slot)
    for key, slopes in seen.items():
        scale = float(expected[key].abs().max())
        torch.testing.assert_close(slopes.sum(0).flatten(), expected[key], atol=1e-8 * scale, rtol=1e-6)
    # A slope that forgot how large a component is would be far outside that.
    wrong = seen[1, "up"].sum(0).flatten() / spectra.by_slot[1, "up"].sigma.flatten()
    assert (wrong - expected[1, "up"]).abs().max() > 0.1 * expected[1, "up"].abs().max()


def in_another_norm(plain: Spectrum) -> Spectrum:
    weight = (plain.u * plain.sigma[:, None]) @ plain.v
    fisher = torch.rand(weight.shape[0], weight.shape[2], dtype=torch.float64) + 0.1
    other = method_named("fwsvd").decompose(weight, InputStats(1, fisher=fisher))
    return replace(other, mean=torch.randn(weight.shape[2], dtype=torch.float64))


def test_the_curvature_is_the_kl_of_a_small_cut(tiny: LoadedModel, spectra: Spectra) -> None:
    batches = to_batches(random_rows(24, seed=5))
    judge = Judge(tiny, spectra, batches)
    losses = curvature(tiny, spectra, batches, draws=16)
    full, ratios = RankPlan.full_rank(spectra.shape), []
    for layer, name in itertools.product(range(3), ("o", "down")):
        rows = {(index, slot.name): full.get(index, slot.name) for index, slot in spectra.shape}
        rows[layer, name] = (_CUT,)
        plan = RankPlan(
            spectra.shape,
            tuple(
                tuple(rows[index, slot.name] for slot in slots)
                for index, slots in enumerate(spectra.shape.layers)
            ),
        )
        ratios.append(losses[layer, name][0, _CUT] / judge.kl(plan))
    # Second order, no cross terms, 16 draws: right within a factor of 1.6, which forgetting the half is not.
    assert 1 / 1.6 < float(np.exp(np.mean(np.log(ratios)))) < 1.6
    for (layer, name), values in losses.items():
        slot = spectra.shape.slot(layer, name)
        assert values.shape == (slot.units, slot.full_rank + 1)
        assert (np.diff(values) <= 0).all() and (values[:, -1] == 0).all()


def test_padding_and_batching_leave_the_curvature_alone(tiny: LoadedModel, spectra: Spectra) -> None:
    rows = random_rows(4, seed=6)
    whole = curvature(tiny, spectra, to_batches(rows, size=4), draws=40)
    alone = curvature(tiny, spectra, to_batches(rows, size=1), draws=40, seed=1)
    for key, values in whole.items():
        assert values.sum() == pytest.approx(alone[key].sum(), rel=0.35)
    same = curvature(tiny, spectra, to_batches(rows, size=4), draws=40)
    assert all((same[key] == whole[key]).all() for key in whole)


def test_in_a_compressed_model_the_curvature_can_be_taken_too(tiny: LoadedModel, spectra: Spectra) -> None:
    batches = to_batches(random_rows(8))
    plan = uniform(spectra.shape, 0.4).replace(1, "up", (None,))
    there = curvature(tiny, spectra, batches, model=Judge(tiny, spectra, batches).model(plan))
    assert all(np.isfinite(values).all() and values[:, 0].min() > 0 for values in there.values())


def test_probes_cut_one_slot_and_alpha_is_kl_over_tail(tiny: LoadedModel, spectra: Spectra) -> None:
    batches = to_batches(random_rows(6))
    stages: list[float] = []
    found = probe(
        tiny, spectra, batches, keeps=(0.3, 0.6), progress=lambda stage, share: stages.append(share)
    )
    assert len(stages) == len(list(spectra.shape)) == len(found.kl)
    plan = RankPlan.dense(spectra.shape).replace(2, "up", uniform(spectra.shape, 0.3).get(2, "up"))
    assert found.kl[2, "up"][0.3] == pytest.approx(Judge(tiny, spectra, batches).kl(plan))
    sigma = spectra.sigmas()[2, "up"][0]
    shares = [np.square(sigma[r:]).sum() / np.square(sigma).sum() for r in (12, 25)]
    expected = np.mean([found.kl[2, "up"][k] / t for k, t in zip((0.3, 0.6), shares, strict=True)])
    assert found.alphas(spectra.sigmas())[2, "up"] == pytest.approx(expected)
    with pytest.raises(InputError, match="above 0 and below 1"):
        probe(tiny, spectra, batches, keeps=(1.0,))


@pytest.mark.parametrize("by", ["curvature", "probes"])
def test_calibrated_fits_and_is_never_worse_than_uniform(
    tiny: LoadedModel, spectra: Spectra, text: TextSplit, by: Any
) -> None:
    budget = Budget.of_keep(spectra.shape, 0.45)
    found = calibrated(tiny, spectra, budget, COSTS, text, by=by)
    assert found.plan.kept_parameters <= budget.value
    by_name = {candidate.name: candidate for candidate in found.evidence}
    assert by_name[found.chosen].softened == min(one.softened for one in found.evidence)
    assert found.kl == by_name[found.chosen].kl and found.uniform_kl == by_name["uniform"].kl
    names = [candidate.name for candidate in found.evidence]
    assert names == ["uniform", "even tails", by, f"{by} in context 1", f"{by} blended 1"]
    judge = Judge(tiny, spectra, text.held_out)
    assert found.kl == pytest.approx(judge.kl(found.plan))
    # The probe text says something else: a choice made on it would be seen.
    assert found.kl != pytest.approx(Judge(tiny, spectra, text.probe).kl(found.plan), rel=1e-3)


def test_the_same_seed_gives_the_same_plan(tiny: LoadedModel, spectra: Spectra, text: TextSplit) -> None:
    budget = Budget.of_keep(spectra.shape, 0.45)
    one, two = (calibrated(tiny, spectra, budget, COSTS, text, rounds=0, seed=4) for _ in range(2))
    assert one.plan == two.plan and one.kl == two.kl


def test_uniform_wins_where_it_is_better(tiny: LoadedModel, spectra: Spectra, text: TextSplit) -> None:
    worse = uniform(spectra.shape, 0.1)
    plans = {"uniform": uniform(spectra.shape, 0.6), "other": worse}
    found = judged(plans, Judge(tiny, spectra, text.held_out), lambda share: None)
    assert chosen_of(found, 0.0).chosen == "uniform"
    assert chosen_of(found[::-1], 0.0).plan == plans["uniform"]


def test_at_temperature_one_the_kl_itself_chooses(
    tiny: LoadedModel, spectra: Spectra, text: TextSplit
) -> None:
    plan = uniform(spectra.shape, 0.4)
    plain = Judge(tiny, spectra, text.held_out, temperature=1.0).candidate("", plan)
    assert plain.softened == pytest.approx(plain.kl, rel=1e-5)
    soft = Judge(tiny, spectra, text.held_out).candidate("", plan)
    assert soft.kl == plain.kl and soft.softened != pytest.approx(soft.kl, rel=0.05)


def test_layers_that_share_a_basis_stay_together(tiny: LoadedModel, text: TextSplit) -> None:
    from flashsvd.stats.collect import collect

    method = method_named("basis_sharing")
    statistics = collect(tiny, list(text.probe), method.needs)
    shared = compute(tiny, method, statistics)
    budget = Budget.of_keep(shared.shape, 0.5)
    for by in ("curvature", "probes"):
        found = calibrated(tiny, shared, budget, COSTS, text, by=by, rounds=1)  # type: ignore[arg-type]
        assert found.plan.kept_parameters <= budget.value
        even, *others = found.evidence
        assert even.name == "uniform" and min(one.softened for one in others) < even.softened


@pytest.mark.parametrize("name", list(ALLOCATORS))
def test_every_allocator_by_name(tiny: LoadedModel, spectra: Spectra, text: TextSplit, name: str) -> None:
    budget = Budget.of_keep(spectra.shape, 0.5)
    options: dict[str, Any] = {"ars": {"steps": 2}, "asvd": {"keeps": (0.2, 0.5)}}.get(name, {})
    found = plan_for(name, tiny, spectra, budget, COSTS, text, **options)
    assert found.plan.kept_parameters <= budget.value
    assert found.kl is not None and found.uniform_kl is not None
    assert found.plan.keep > 0.2


def test_what_an_allocator_needs_is_said(tiny: LoadedModel, spectra: Spectra, text: TextSplit) -> None:
    budget = Budget.of_keep(spectra.shape, 0.5)
    assert plan_for("energy", tiny, spectra, budget, COSTS).kl is None
    with pytest.raises(InputError, match="allocator must be one of uniform, energy"):
        plan_for("best", tiny, spectra, budget, COSTS)
    with pytest.raises(InputError, match="measures on calibration text"):
        plan_for("calibrated", tiny, spectra, budget, COSTS)
    with pytest.raises(InputError, match="has no option 'steps'"):
        plan_for("calibrated", tiny, spectra, budget, COSTS, text, steps=3)
    with pytest.raises(PlanError, match="no uniform plan fits"):
        plan_for("uniform", tiny, spectra, Budget("parameters", 10), COSTS)
    with pytest.raises(PlanError, match="the least possible is"):
        plan_for("calibrated", tiny, spectra, Budget("parameters", 10), COSTS, text)


def test_uniform_and_energy_use_the_whole_budget(spectra: Spectra) -> None:
    budget = Budget.of_keep(spectra.shape, 0.5)
    for plan in (uniform_within(spectra.shape, COSTS, budget), energy_within(spectra, budget, COSTS)):
        assert plan is not None and 0.46 < plan.keep <= 0.5
    assert uniform_within(spectra.shape, COSTS, Budget("parameters", 1e9)) == RankPlan.dense(spectra.shape)
    losses = {key: np.zeros((len(s), s.shape[1] + 1)) for key, s in spectra.sigmas().items()}
    assert total_loss(RankPlan.dense(spectra.shape), losses) == 0


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """ModernBERT, whose q, k, v are one linear, as are gate and up."""
    from transformers import ModernBertConfig, ModernBertForSequenceClassification

    config = ModernBertConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        num_labels=4,
        **dict.fromkeys(("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), 0),
    )
    return saved(ModernBertForSequenceClassification(config), tmp_path_factory.mktemp("fused"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A language model with fewer heads for k and v than for q."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return saved(LlamaForCausalLM(config), tmp_path_factory.mktemp("decoder"))


def saved(model: Any, folder: Path) -> LoadedModel:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(folder)
    return load(str(folder))


def test_rows_of_a_fused_linear_are_the_slots_own(fused: LoadedModel) -> None:
    spectra = compute(fused, method_named("svd"))
    batches = to_batches(random_rows(6))
    dense = curvature(fused, spectra, batches)
    with _masked(fused, spectra) as (model, modules):
        assert modules
        apart = curvature(fused, spectra, batches, model=model)
    for key, values in dense.items():
        np.testing.assert_allclose(values, apart[key], rtol=1e-3, atol=1e-4 * values.max())
    # With another slot's rows the two would differ.
    assert not np.allclose(dense[0, "q"], dense[0, "k"], rtol=0.1)


@pytest.mark.parametrize("name", ["fused", "decoder"])
def test_other_architectures_beat_uniform(name: str, request: pytest.FixtureRequest, text: TextSplit) -> None:
    loaded = request.getfixturevalue(name)
    spectra = compute(loaded, method_named("svd"))
    budget = Budget.of_keep(spectra.shape, 0.5)
    for by in ("curvature", "probes"):
        found = calibrated(loaded, spectra, budget, COSTS, text, by=by)  # type: ignore[arg-type]
        assert found.kl is not None and found.uniform_kl is not None
        assert found.kl < 0.75 * found.uniform_kl
    assert plan_for("ars", loaded, spectra, budget, COSTS, text, steps=2).plan.keep <= 0.5


def test_tokens_are_judged_by_their_plain_kl(decoder: LoadedModel, text: TextSplit) -> None:
    spectra = compute(decoder, method_named("svd"))
    found = Judge(decoder, spectra, text.held_out).candidate("", uniform(spectra.shape, 0.4))
    assert found.softened == found.kl > 0
