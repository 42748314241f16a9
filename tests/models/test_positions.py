"""Presets longer than their table of positions, on a model that only says it is one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flashsvd.allocate import by_role
from flashsvd.bench.random_factors import random_spectra
from flashsvd.engines.build import build
from flashsvd.factors import factorise, reconstruct
from flashsvd.models.load import LoadedModel, load
from flashsvd.models.positions import MOST_POSITIONS, with_positions
from flashsvd.models.sources import Source
from flashsvd.ranks import RankPlan
from flashsvd.session import Session
from flashsvd.spectra import weight_of


@pytest.fixture(scope="module")
def preset(tiny_folder: Path) -> LoadedModel:
    return replace(load(str(tiny_folder)), source=Source("tiny", "preset", "Tiny, random weights"))


def test_a_longer_preset_shares_all_but_its_positions(preset: LoadedModel) -> None:
    longer = with_positions(preset, 100)
    assert longer.shape.max_positions == 100 == longer.model.config.max_position_embeddings
    assert preset.shape.max_positions == 64 == preset.model.config.max_position_embeddings
    mine, theirs = dict(longer.model.named_parameters()), dict(preset.model.named_parameters())
    own = [name for name in mine if mine[name].data_ptr() != theirs[name].data_ptr()]
    assert own == ["bert.embeddings.position_embeddings.weight"]
    assert not longer.model.training and not any(value.requires_grad for value in mine.values())
    torch.testing.assert_close(
        mine[own[0]], dict(with_positions(preset, 100).model.named_parameters())[own[0]]
    )


def test_every_engine_runs_at_the_new_length(preset: LoadedModel) -> None:
    longer = with_positions(preset, 100)
    plan = by_role(longer.shape, 9, 20, 11)
    factors = factorise(longer, random_spectra(longer, seed=0), plan)
    ids = torch.randint(1, 200, (2, 100))
    lowrank, flash = (build(longer, engine, factors, plan)(ids).logits for engine in ("lowrank", "flash"))
    torch.testing.assert_close(flash, lowrank, rtol=1e-4, atol=1e-4)
    assert longer.model(ids).logits.isfinite().all()


def test_what_is_long_enough_or_trained_stays_and_a_slip_is_bounded(preset: LoadedModel) -> None:
    assert with_positions(preset, 64) is preset
    trained = replace(preset, source=Source("tiny", "local", "tiny"))
    assert with_positions(trained, 100) is trained
    assert with_positions(preset, 10**12).shape.max_positions == MOST_POSITIONS
    session = Session()
    assert session.longer(trained, 100) is trained
    assert session.longer(preset, 100) is session.longer(preset, 100)


def test_random_factors_have_the_spread_of_the_weights_and_a_seed(preset: LoadedModel) -> None:
    full = RankPlan.full_rank(preset.shape)
    first, again, other = (factorise(preset, random_spectra(preset, seed=seed), full) for seed in (0, 0, 1))
    for layer, slot in full.shape:
        made = reconstruct(slot, first[layer, slot.name])
        weight = weight_of(preset, layer, slot)
        assert made.shape == weight.shape
        assert made.std().item() == pytest.approx(weight.std().item(), rel=0.1)
        assert torch.equal(first[layer, slot.name].u, again[layer, slot.name].u)
        assert not torch.equal(first[layer, slot.name].u, other[layer, slot.name].u)
