"""The flash engine's own ways: slices, hidden states written over one another, and who may still see them."""

from __future__ import annotations

import pytest
import torch

from flashsvd.allocate import uniform
from flashsvd.engines import sublayer
from flashsvd.engines.attention import RankSpaceAttention, RebuiltAttention
from flashsvd.engines.build import build
from flashsvd.engines.sublayer import plan_slices
from flashsvd.errors import InputError
from flashsvd.factors import factorise
from flashsvd.kernels.gate import relative_error
from flashsvd.measure.memory import peak_activation_bytes, record_timeline
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute

IDS = torch.randint(200, (5, 24), generator=torch.Generator().manual_seed(3))
MASK = torch.ones_like(IDS)
MASK[1, 9:] = 0
MASK[3, :7] = 0


@pytest.fixture(scope="module")
def models(tiny: LoadedModel) -> dict[str, torch.nn.Module]:
    plan = RankPlan.from_text(tiny.shape, "*.qkv: 9 *.o: 11 *.up: 20 *.down: 17")
    factors = factorise(tiny, compute(tiny, method_named("svd")), plan)
    built = {name: build(tiny, name, factors, plan) for name in ("lowrank", "flash")}
    return built | {"rebuilt": build(tiny, "flash", factors, plan, rebuild=True)}


@torch.no_grad()
def run(model: torch.nn.Module, **options: object) -> object:
    return model(input_ids=IDS, attention_mask=MASK, **options)


def test_every_hidden_state_that_is_asked_for_is_its_own(models: dict[str, torch.nn.Module]) -> None:
    mine = run(models["flash"], output_hidden_states=True).hidden_states  # type: ignore[attr-defined]
    theirs = run(models["lowrank"], output_hidden_states=True).hidden_states  # type: ignore[attr-defined]
    assert len(mine) == len(theirs) == 4
    seen = MASK.bool()
    for one, other in zip(mine, theirs, strict=True):
        assert relative_error(one[seen], other[seen]) < 1e-5


def test_a_hook_keeps_what_it_saw(models: dict[str, torch.nn.Module]) -> None:
    flash = models["flash"]
    seen: list[torch.Tensor] = []
    blocks = flash.base_model.encoder.layer  # type: ignore[union-attr]
    handle = blocks[0].register_forward_hook(lambda _, __, out: seen.append(out))
    try:
        run(flash)
    finally:
        handle.remove()
    expected = run(models["lowrank"], output_hidden_states=True).hidden_states[1]  # type: ignore[attr-defined]
    assert relative_error(seen[0][MASK.bool()], expected[MASK.bool()]) < 1e-5


def test_blocks_write_over_the_one_buffer_otherwise(models: dict[str, torch.nn.Module]) -> None:
    flash = models["flash"]
    blocks = flash.base_model.encoder.layer  # type: ignore[union-attr]
    places = []

    def look(_: object, __: object, out: torch.Tensor) -> None:
        places.append(out.data_ptr())

    look.reads_at_once = True  # type: ignore[attr-defined]
    handles = [block.register_forward_hook(look) for block in blocks]
    try:
        run(flash)
    finally:
        for handle in handles:
            handle.remove()
    assert len(set(places)) == 1


@pytest.mark.parametrize("least", [1, 8, 30, 10_000])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_slices_change_nothing(
    models: dict[str, torch.nn.Module], monkeypatch: pytest.MonkeyPatch, batch: int, least: int
) -> None:
    monkeypatch.setitem(sublayer.LEAST_TOKENS, "cpu", 10_000)
    whole = models["flash"](input_ids=IDS[:batch], attention_mask=MASK[:batch]).logits
    monkeypatch.setitem(sublayer.LEAST_TOKENS, "cpu", least)
    monkeypatch.setattr(sublayer, "SLICE_SHARE", 0.3)
    for name in ("flash", "rebuilt"):
        sliced = models[name](input_ids=IDS[:batch], attention_mask=MASK[:batch]).logits
        assert relative_error(sliced, whole) < 1e-5


@pytest.mark.parametrize(("batch", "seq"), [(1, 16384), (2, 4096), (3, 700), (32, 512), (64, 128), (7, 1)])
@pytest.mark.parametrize("width", [100, 1680, 5000])
def test_slices_cover_everything_and_stay_within_their_share(batch: int, seq: int, width: int) -> None:
    found = plan_slices(batch, seq, width, 768, 12, "cuda")
    assert 1 <= found.sequences <= batch and 1 <= found.heads <= 12
    tokens = found.sequences * seq
    groups = -(-12 // found.heads)
    if batch * seq >= 16384 and 12 % groups == 0 and batch % found.sequences == 0:
        assert tokens * width / groups <= sublayer.SLICE_SHARE * 768 * batch * seq
    assert tokens >= min(batch * seq, sublayer.LEAST_TOKENS["cuda"]) or found.heads < 12


def test_both_attentions_are_the_same_function(models: dict[str, torch.nn.Module]) -> None:
    for name, kind in (("flash", RankSpaceAttention), ("rebuilt", RebuiltAttention)):
        block = models[name].base_model.encoder.layer[0]  # type: ignore[union-attr]
        assert isinstance(block.flash_attention, kind)
    lowrank = run(models["lowrank"]).logits  # type: ignore[attr-defined]
    for name in ("flash", "rebuilt"):
        assert relative_error(run(models[name]).logits, lowrank) < 1e-5  # type: ignore[attr-defined]


def test_weights_read_later_are_the_ones_that_run(tiny: LoadedModel) -> None:
    plan = uniform(tiny.shape, 0.5)
    factors = factorise(tiny, compute(tiny, method_named("svd")), plan)
    lowrank, flash = (build(tiny, name, factors, plan) for name in ("lowrank", "flash"))
    changed = {name: tensor * 1.1 for name, tensor in lowrank.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in lowrank.state_dict().items()}
    try:
        lowrank.load_state_dict(changed)
        flash.load_state_dict(changed)
        assert relative_error(run(flash).logits, run(lowrank).logits) < 1e-5  # type: ignore[attr-defined]
    finally:
        lowrank.load_state_dict(before)


def test_peak_is_about_two_hidden_states(tiny: LoadedModel, models: dict[str, torch.nn.Module]) -> None:
    ids = IDS.repeat(64, 2)
    peaks = {}
    for name in ("lowrank", "flash"):
        model = models[name]
        blocks = tiny.family.layers(model.base_model)  # type: ignore[arg-type]
        with torch.inference_mode():
            peaks[name] = peak_activation_bytes(
                record_timeline(model, blocks, lambda model=model: model(input_ids=ids))
            )
    hidden_state = ids.numel() * 64 * 4
    assert peaks["flash"] < 3 * hidden_state < 0.6 * peaks["lowrank"]


def test_masks_that_are_no_padding_are_refused(models: dict[str, torch.nn.Module]) -> None:
    with pytest.raises(InputError, match="padding mask"):
        models["flash"](input_ids=IDS, attention_mask=torch.ones(5, 1, 24, 24))


def test_a_graph_is_for_flash_on_cuda(tiny: LoadedModel) -> None:
    from flashsvd.errors import DeviceError

    plan = uniform(tiny.shape, 0.5)
    factors = factorise(tiny, compute(tiny, method_named("svd")), plan)
    with pytest.raises(InputError, match="graph=True is for the flash engine"):
        build(tiny, "lowrank", factors, plan, graph=True)
    with pytest.raises(DeviceError, match="needs a model on a CUDA device"):
        build(tiny, "flash", factors, plan, graph=True)
