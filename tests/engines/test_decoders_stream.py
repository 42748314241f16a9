"""How decoders stream: pieces that change nothing, memory, who may see hidden states, and weights that exist once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flashsvd
from flashsvd.allocate import uniform
from flashsvd.engines import attend as attend_module
from flashsvd.engines import sublayer
from flashsvd.engines.attend import attend
from flashsvd.engines.build import build, weight_bytes
from flashsvd.engines.causal import CausalAttention
from flashsvd.errors import InputError
from flashsvd.factors import factorise
from flashsvd.kernels.gate import relative_error
from flashsvd.measure.memory import peak_activation_bytes, record_timeline
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute
from flashsvd.stats.collect import collect
from tests.small_decoders import Decoder, every_decoder

IDS = torch.randint(2, 50, (5, 24), generator=torch.Generator().manual_seed(3))
MASK = torch.ones_like(IDS)
MASK[1, 9:] = 0
MASK[3, :7] = 0
every_cache = pytest.mark.parametrize("cache", ["dense", "rank"])


def built(loaded: LoadedModel, text: str, engine: str = "flash", **options: Any) -> Any:
    plan = RankPlan.from_text(loaded.shape, text)
    return build(
        loaded, engine, factorise(loaded, compute(loaded, method_named("svd")), plan), plan, **options
    )


PLAN = "*.qkv: 9 *.o: 11 *.up: 20 *.down: 17"


@every_decoder
@every_cache
@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize("batch", [1, 5])
def test_pieces_change_nothing(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, family: str, cache: str, per_head: bool, batch: int
) -> None:
    model = built(decoder(family, per_head), PLAN, cache=cache)
    ids, mask = IDS[:batch], MASK[:batch]
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    wholes = [model(ids).logits, model(ids, attention_mask=mask, position_ids=positions).logits]
    monkeypatch.setattr(sublayer, "SLICE_SHARE", 0.2)
    for least in (1, 8, 30):
        monkeypatch.setitem(sublayer.LEAST_TOKENS, "cpu", least)
        cut = [model(ids).logits, model(ids, attention_mask=mask, position_ids=positions).logits]
        assert relative_error(cut[0], wholes[0]) < 1e-12
        assert relative_error(cut[1][mask.bool()], wholes[1][mask.bool()]) < 1e-12


@pytest.mark.parametrize("cache", [True, False])
def test_peak_is_a_quarter_of_the_dense_models(decoder: Decoder, cache: bool) -> None:
    """Keys and values apart, in the proportions of Llama-2-7B."""
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "num_key_value_heads": 4}
    loaded = decoder(
        "llama", per_head=False, dtype=torch.float32, head_dim=64, max_position_embeddings=512, **sizes
    )
    plan = uniform(loaded.shape, 0.5)
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    ids = IDS[:4].repeat(1, 20)
    kept = 2 * 3 * ids.numel() * 256 * 4 if cache else 0
    peaks = {}
    for name in ("dense", "flash"):
        model = build(loaded, name, factors, plan)
        with torch.inference_mode():
            timeline = record_timeline(
                model,
                loaded.family.layers(model.base_model),
                lambda model=model: model(input_ids=ids, use_cache=cache, logits_to_keep=1),
            )
        peaks[name] = peak_activation_bytes(timeline) - kept
    assert peaks["flash"] < (0.28 if cache else 0.4) * peaks["dense"]


@every_decoder
@torch.inference_mode()
def test_who_asks_for_hidden_states_keeps_them(decoder: Decoder, family: str) -> None:
    loaded = decoder(family)
    flash, lowrank = built(loaded, PLAN), built(loaded, PLAN, "lowrank")
    expected = lowrank(IDS, output_hidden_states=True).hidden_states
    mine = flash(IDS, output_hidden_states=True).hidden_states
    assert len(mine) == len(expected) == 4
    assert all(relative_error(one, other) < 2e-6 for one, other in zip(mine, expected, strict=True))
    seen: list[torch.Tensor] = []
    blocks = loaded.family.layers(flash.base_model)
    handle = blocks[0].register_forward_hook(lambda _, __, out: seen.append(out))
    flash(IDS)
    handle.remove()
    assert relative_error(seen[0], expected[1]) < 2e-6
    places = []

    def look(_: object, __: object, out: torch.Tensor) -> None:
        places.append(out.data_ptr())

    look.reads_at_once = True  # type: ignore[attr-defined]
    handles = [block.register_forward_hook(look) for block in blocks]
    flash(IDS)
    for handle in handles:
        handle.remove()
    assert len(set(places)) == 1


@every_decoder
@every_cache
def test_weights_read_later_and_moved_are_the_ones_that_run(
    decoder: Decoder, family: str, cache: str
) -> None:
    loaded = decoder(family, dtype=torch.float32)
    lowrank, flash = built(loaded, PLAN, "lowrank"), built(loaded, PLAN, cache=cache)
    changed = {name: tensor * 1.1 for name, tensor in lowrank.state_dict().items()}
    lowrank.load_state_dict(changed)
    flash.load_state_dict(changed)
    expected = lowrank(IDS).logits
    assert relative_error(flash(IDS).logits, expected) < 1e-5
    size = weight_bytes(flash)
    moved = flash.to(torch.float64)
    # The angles of rotary positions are buffers, too.
    assert weight_bytes(moved) == 2 * size
    assert relative_error(moved(IDS).logits, expected) < 1e-5


ALIGNED = {
    "gpt2": "*.qkv: 8 *.o: 16 *.up: 24 *.down: 16",
    "llama": "*.qkv: 8 *.o: 16 *.gate: 32 *.up: 24 *.down: 16",
    "qwen3": "*.q: 8 *.k: 16 *.v: dense *.o: 16 *.gate: 32 *.down: 16",
    "opt": "*.qkv: 8 *.o: 16 *.up: 24 *.down: dense",
}


@pytest.mark.parametrize("family", ALIGNED)
@pytest.mark.parametrize("per_head", [True, False])
def test_no_weight_exists_twice_at_aligned_ranks(
    decoder: Decoder, family: str, per_head: bool, tmp_path: Path
) -> None:
    loaded = decoder(family, per_head, torch.float32)
    # What is computed of it: the biases of a packed product, once more.
    slack = 4 * 3 * 3 * 128
    built(loaded, ALIGNED[family], "lowrank").save_pretrained(tmp_path)
    lowrank, flash = (flashsvd.load_compressed(tmp_path, engine=name) for name in ("lowrank", "flash"))
    assert 0 <= weight_bytes(flash) - weight_bytes(lowrank) <= slack
    assert relative_error(flash(IDS).logits, lowrank(IDS).logits) < 1e-5
    assert lowrank.state_dict().keys() == flash.state_dict().keys()
    for name, tensor in flash.state_dict().items():
        assert torch.equal(tensor, lowrank.state_dict()[name])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_that_share_a_basis_share_it_still(decoder: Decoder, family: str, tmp_path: Path) -> None:
    loaded = decoder(family, per_head=False, dtype=torch.float32)
    method = method_named("basis_sharing")
    statistics = collect(loaded, [{"input_ids": IDS}], method.needs, cache=tmp_path / "cache")
    spectra = compute(loaded, method, statistics)
    plan = RankPlan.build(spectra.shape, lambda layer, slot, unit: 16)
    factors = factorise(loaded, spectra, plan)
    lowrank, flash = (build(loaded, name, factors, plan) for name in ("lowrank", "flash"))
    for mask in (None, MASK):
        given = [model(IDS, attention_mask=mask).logits for model in (flash, lowrank)]
        valid = torch.ones_like(MASK).bool() if mask is None else mask.bool()
        assert relative_error(given[0][valid], given[1][valid]) < 1e-5
    assert weight_bytes(flash) - weight_bytes(lowrank) <= 4 * 3 * 3 * 128
    path = loaded.family.path
    first, second = (flash.base_model.get_submodule(path(layer, "q")).V for layer in (0, 1))
    assert first.data_ptr() == second.data_ptr()
    flash.save_pretrained(tmp_path / "saved")
    again = flashsvd.load_compressed(tmp_path / "saved")
    assert torch.equal(again(IDS).logits, flash(IDS).logits)
    assert weight_bytes(again) == weight_bytes(flash)
    expected, size = again(IDS).logits, weight_bytes(again)
    moved = again.to(torch.float64)
    assert weight_bytes(moved) == 2 * size
    assert relative_error(moved(IDS).logits, expected) < 1e-5


def scored(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of [b, S, H·w] on [b, Hk, T, ..] by the definition."""
    q = q.unflatten(-1, (-1, k.shape[-1])).transpose(1, 2)
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    scores = (q @ k.mT * scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("seq", [1, 3, 9])
@pytest.mark.parametrize("window", [None, 2, 8])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", ["exact", "static"])
def test_attention_is_by_the_definition(
    seq: int, window: int | None, masked: bool, kv_heads: int, length: str
) -> None:
    torch.manual_seed(0)
    total, columns = 9, 9 - seq
    q = torch.randn(3, seq, 4 * 6, dtype=torch.float64)
    k, v = (torch.randn(3, kv_heads, total, width, dtype=torch.float64) for width in (6, 5))
    key_mask = torch.ones(3, total, dtype=torch.bool)
    if masked:
        key_mask[0, :4], key_mask[1, 7:], key_mask[2] = False, False, False
    gap = (torch.arange(seq) + columns)[:, None] - torch.arange(total)
    near = (gap >= 0) if window is None else (gap >= 0) & (gap <= window)
    # What is masked itself sees itself.
    seen = (near & key_mask[:, None] | (gap == 0))[:, None]
    at: Any = columns
    if length == "static":
        k, v, at = (*(torch.nn.functional.pad(part, (0, 0, 0, 4)) for part in (k, v)), torch.tensor(columns))
        key_mask = torch.nn.functional.pad(key_mask, (0, 4))
        seen = torch.nn.functional.pad(seen, (0, 4))
    found = attend(q, k, v, columns=at, key_mask=key_mask if masked else None, window=window, scale=0.3)
    assert found.isfinite().all()
    assert relative_error(found, scored(q, k, v, seen, 0.3)) < 1e-12
    if seq > 1 and not masked:
        wrong = attend(q, k, v, columns=torch.tensor(columns - 1), key_mask=None, window=window, scale=0.3)
        assert relative_error(found, wrong) > 1e-3


def test_nothing_of_all_scores_is_made_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def look(*args: Any, **kwargs: Any) -> torch.Tensor:
        given.append(kwargs.get("attn_mask"))
        return real(*args, **kwargs)

    monkeypatch.setattr("flashsvd.engines.attend.scaled_dot_product_attention", look)
    q, k = torch.randn(1, 8, 4 * 6), torch.randn(1, 2, 8, 6)
    attend(q, k, k, columns=0, key_mask=None, window=None, scale=1.0)
    attend(q, k, k, columns=0, key_mask=None, window=7, scale=1.0)
    attend(q[:, :1], k, k, columns=7, key_mask=None, window=7, scale=1.0)
    assert given == [None, None, None]
    attend(q, k, k, columns=0, key_mask=None, window=6, scale=1.0)
    assert given[3].shape == (1, 1, 8, 8)


@pytest.mark.parametrize(("family", "cache"), [("mistral", "dense"), ("gpt2", "rank"), ("qwen3", "rank")])
def test_the_kernels_compute_the_same(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, family: str, cache: str
) -> None:
    """The Triton source of what a GPU runs; masks, windows and values of another width go to a kernel of our own."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend = "triton" if device == "cuda" else "interpret"
    loaded = decoder(family, dtype=torch.float32, num_hidden_layers=2, device=device)
    lowrank = built(loaded, PLAN, "lowrank")
    flash = built(loaded, PLAN, cache=cache, backend=backend)
    taken: list[Any] = []
    real = attend_module.rank_space_attention
    monkeypatch.setattr(
        attend_module, "rank_space_attention", lambda *a, **b: taken.append(b["window"]) or real(*a, **b)
    )
    monkeypatch.setattr(CausalAttention, "_on_chip", lambda *_: False)
    ids, mask = IDS[:2].to(device), MASK[:2].to(device)
    for given in ({}, {"attention_mask": mask}, {"attention_mask": mask, "use_cache": False}):
        valid = mask.bool() if "attention_mask" in given else torch.ones_like(mask).bool()
        error = relative_error(flash(ids, **given).logits[valid], lowrank(ids, **given).logits[valid])
        assert error < 1e-5
    assert taken == [4 if family == "mistral" else None] * 2


@every_decoder
def test_norms_are_those_of_transformers(decoder: Decoder, family: str) -> None:
    loaded = decoder(family, dtype=torch.float32)
    module = loaded.model.base_model.get_submodule(loaded.family.norm(1, "attention"))
    norm, x = sublayer.norm_of(module), torch.randn(7, 64)
    assert norm is not None and norm.kind == ("layer" if family in ("gpt2", "opt") else "rms")
    assert relative_error(norm(x, bias=None, out=None, backend=None), module(x)) < 1e-6


def test_a_norm_that_means_something_else_is_refused() -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    with pytest.raises(InputError, match="no kernel for the norm GemmaRMSNorm"):
        sublayer.norm_of(GemmaRMSNorm(8))


@pytest.mark.parametrize("broken", ["cut", "shift"])
def test_pieces_that_are_cut_wrongly_are_caught(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    model = built(decoder("llama"), PLAN)
    whole = model(IDS).logits
    monkeypatch.setitem(sublayer.LEAST_TOKENS, "cpu", 8)
    from flashsvd.engines import causal

    real: Callable[..., Any] = causal.some_heads if broken == "cut" else causal.made_heads
    wrong: dict[str, Callable[..., Any]] = {
        "cut": lambda heads, first, last: real(heads, 0, last - first),
        "shift": lambda p, heads, shift=0, out=None: real(p, heads, shift=shift and shift - 8, out=out),
    }
    monkeypatch.setattr(sublayer, "SLICE_SHARE", 0.2)
    name = "some_heads" if broken == "cut" else "made_heads"
    monkeypatch.setattr(causal, name, wrong[broken])
    try:
        error = relative_error(model(IDS).logits, whole)
    except RuntimeError:
        return
    assert error > 1e-3
