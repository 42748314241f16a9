"""The engines compute the same function: full rank is dense, and flash is lowrank."""

from pathlib import Path

import pytest
import torch

from flashsvd.allocate import uniform
from flashsvd.engines.build import build, checked_between_layers, weight_bytes
from flashsvd.errors import Cancelled, InputError, PlanError
from flashsvd.factors import factorise, reconstruct
from flashsvd.kernels.gate import relative_error
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel, load
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute, weight_of

PLANS = [
    "*.qkv: 9 *.o: 11 *.up: 20 *.down: 17",
    "*.q: 9 L2.q.h2: 7 L1.v.h1: dense *.k: 12 *.up: 20 L3.down: 9",
    "L2.*: dense *.o: 1 *.q: 1",
]


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(200, (4, 33), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    mask[1, :5] = 0
    mask[2, 1:] = 0
    return ids, mask


def _engines(loaded: LoadedModel, plan: RankPlan) -> dict[str, torch.nn.Module]:
    spectra = compute(loaded, method_named("svd"))
    factors = factorise(loaded, spectra, plan)
    return {name: build(loaded, name, factors, plan) for name in ("dense", "lowrank", "flash")}


def _logits(model: torch.nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    ids, mask = inputs
    return model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("per_head", [True, False])
def test_full_rank_equals_dense_in_float64(
    tiny_folder: Path, per_head: bool, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    loaded = load(str(tiny_folder), dtype=torch.float64, per_head=per_head)
    plan = RankPlan.full_rank(loaded.shape)
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    for layer, slot in loaded.shape:
        torch.testing.assert_close(
            reconstruct(slot, factors[layer, slot.name]),
            weight_of(loaded, layer, slot),
            rtol=1e-10,
            atol=1e-12,
        )
    dense = _logits(loaded.model, inputs)
    assert relative_error(_logits(build(loaded, "lowrank", factors, plan), inputs), dense) < 1e-12
    # The streaming form accumulates in float32, whatever comes in.
    assert relative_error(_logits(build(loaded, "flash", factors, plan), inputs), dense) < 1e-5


@pytest.mark.parametrize("text", PLANS)
def test_flash_equals_lowrank_at_cut_ranks(
    tiny: LoadedModel, text: str, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    models = _engines(tiny, RankPlan.from_text(tiny.shape, text))
    lowrank = _logits(models["lowrank"], inputs)
    assert relative_error(_logits(models["flash"], inputs), lowrank) < 1e-6
    assert relative_error(_logits(models["dense"], inputs), lowrank) > 1e-3


def test_whole_matrices_stream_too(tiny_folder: Path, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    loaded = load(str(tiny_folder), per_head=False)
    models = _engines(loaded, RankPlan.from_text(loaded.shape, "*.qkv: 19 *.o: 11 *.up: 20 *.down: 17"))
    assert relative_error(_logits(models["flash"], inputs), _logits(models["lowrank"], inputs)) < 1e-6


def test_keep_one_is_the_dense_model_itself(
    tiny: LoadedModel, inputs: tuple[torch.Tensor, torch.Tensor]
) -> None:
    models = _engines(tiny, uniform(tiny.shape, 1.0))
    dense = _logits(models["dense"], inputs)
    assert torch.equal(_logits(models["lowrank"], inputs), dense)
    assert relative_error(_logits(models["flash"], inputs), dense) < 1e-6


def test_no_padding_mask_is_the_same_as_all_ones(tiny: LoadedModel) -> None:
    model = _engines(tiny, uniform(tiny.shape, 0.5))["flash"]
    ids = torch.arange(24).reshape(2, 12)
    torch.testing.assert_close(model(ids).logits, model(ids, attention_mask=torch.ones_like(ids)).logits)


def test_engines_leave_the_dense_model_alone_and_hold_its_tensors_once(tiny: LoadedModel) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    models = _engines(tiny, uniform(tiny.shape, 0.5))
    lowrank, flash = models["lowrank"].state_dict(), models["flash"].state_dict()
    assert lowrank.keys() == flash.keys()
    assert all(torch.equal(tensor, lowrank[name]) for name, tensor in flash.items())
    shared = before.keys() & lowrank.keys()
    assert shared and all(tiny.model.state_dict()[n].data_ptr() == flash[n].data_ptr() for n in shared)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.model.state_dict().items())
    assert tiny.model.config._attn_implementation == "sdpa"
    assert weight_bytes(models["lowrank"]) < weight_bytes(tiny.model)


def test_what_flash_makes_of_its_factors_is_small_at_aligned_ranks(tiny: LoadedModel) -> None:
    """Of q, k, v only q's first factor is another one, and the heads' outputs go to the hidden state in one product."""
    models = _engines(tiny, RankPlan.from_text(tiny.shape, "*.qkv: 16 *.o: 16 *.up: 24 *.down: 24"))
    hidden, ranks = 64, 2 * 16
    own = 3 * 4 * (ranks * hidden + 3 * ranks + hidden * ranks + hidden)
    assert weight_bytes(models["flash"]) - weight_bytes(models["lowrank"]) == own


def test_a_check_between_layers_stops_a_run_and_leaves_no_hook(tiny: LoadedModel) -> None:
    seen = []

    def check() -> None:
        seen.append(None)
        if len(seen) == 2:
            raise Cancelled("cancelled")

    ids = torch.arange(8)[None]
    with pytest.raises(Cancelled), checked_between_layers(tiny.model, tiny.family, check):
        tiny.model(ids)
    tiny.model(ids)
    assert len(seen) == 2


def test_bad_requests_are_one_line(tiny: LoadedModel) -> None:
    with pytest.raises(InputError, match="engine must be one of dense, lowrank, flash"):
        build(tiny, "warp")
    with pytest.raises(InputError, match="needs factors"):
        build(tiny, "flash")
    other = load("electra-small").shape
    with pytest.raises(PlanError, match="for whole matrices but the spectra are per head"):
        factorise(tiny, compute(tiny, method_named("svd")), uniform(tiny.shape.with_per_head(False), 0.5))
    with pytest.raises(PlanError, match="another model"):
        factorise(tiny, compute(tiny, method_named("svd")), uniform(other, 0.5))
    model = _engines(tiny, uniform(tiny.shape, 0.5))["flash"]
    with pytest.raises(InputError, match="padding mask"):
        model(torch.arange(8)[None], attention_mask=torch.ones(1, 1, 8, 8))
