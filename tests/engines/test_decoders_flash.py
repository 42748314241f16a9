"""Decoders through the streaming engine: the logits, the tokens and the caches of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import flashsvd
from flashsvd.engines.build import build
from flashsvd.engines.causal import CausalAttention
from flashsvd.errors import InputError, ModelError
from flashsvd.factors import factorise
from flashsvd.kernels.gate import relative_error
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute
from tests.small_decoders import Decoder, every_decoder

IDS = torch.randint(2, 50, (5, 17), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[1, :6] = 0
MASK[2, 12:] = 0
MASK[3, :3] = 0
MASK[3, 14:] = 0
# A rank for all, one for every head, dense heads and slots, and ranks that are no multiple of 8.
PLANS = [
    "*.qkv: 5 *.o: 20 *.up: 20 L2.down: 9",
    "*.q: 9 L1.v.h1: 3 L2.v: 12 L1.k: 3 L2.k.h1: dense *.o: 33 *.up: 24 L1.down: 40",
    "*.v: 7 L2.k: 3 L1.q: 16 L2.o: 30",
]
every_cache = pytest.mark.parametrize("cache", ["dense", "rank"])


def models(loaded: LoadedModel, plan: RankPlan | str, **options: Any) -> dict[str, Any]:
    """The low-rank and the flash engine on the same factors."""
    if isinstance(plan, str):
        # A single key head is all of its slot.
        plan = RankPlan.from_text(
            loaded.shape, plan if loaded.shape.kv_heads > 1 else plan.replace(".h1", "")
        )
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    return {
        "lowrank": build(loaded, "lowrank", factors, plan),
        "flash": build(loaded, "flash", factors, plan, **options),
    }


@torch.inference_mode()
def logits(model: Any, mask: torch.Tensor | None = None, **given: Any) -> torch.Tensor:
    """Of the tokens that are no padding."""
    found = model(IDS, attention_mask=mask, **given).logits
    assert found.isfinite().all()
    return found if mask is None else found[mask.bool()]


def tokens(model: Any, ids: torch.Tensor = IDS, **given: Any) -> torch.Tensor:
    settings = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, **given}
    return model.generate(ids, **settings)[:, ids.shape[1] :]


def limit(family: str) -> float:
    """transformers norms and turns in float32, whatever the model's dtype; GPT-2 and OPT do neither."""
    return 1e-12 if family in ("gpt2", "opt") else 2e-6


@every_decoder
@pytest.mark.parametrize("per_head", [True, False])
def test_full_rank_equals_transformers(decoder: Decoder, family: str, per_head: bool) -> None:
    loaded = decoder(family, per_head)
    flash = models(loaded, RankPlan.full_rank(loaded.shape))["flash"]
    assert type(flash) is type(loaded.model)
    single = decoder(family, per_head, torch.float32)
    built = models(single, RankPlan.full_rank(single.shape))
    for mask in (None, MASK):
        dense = logits(loaded.model, mask)
        assert relative_error(logits(flash, mask), dense) < limit(family)
        # In float32 it is no further from them than twice the two factors in plain torch.
        errors = {name: relative_error(logits(model, mask), dense) for name, model in built.items()}
        assert errors["flash"] < 2 * errors["lowrank"] < 4e-5


@every_decoder
@every_cache
@pytest.mark.parametrize("text", PLANS)
def test_cut_ranks_equal_lowrank(decoder: Decoder, family: str, text: str, cache: str) -> None:
    loaded = decoder(family)
    built = models(loaded, text, cache=cache)
    for mask in (None, MASK):
        lowrank = logits(built["lowrank"], mask)
        assert relative_error(logits(built["flash"], mask), lowrank) < limit(family)
        assert relative_error(logits(loaded.model, mask), lowrank) > 1e-2


@every_decoder
@every_cache
def test_whole_matrices_equal_lowrank(decoder: Decoder, family: str, cache: str) -> None:
    loaded = decoder(family, per_head=False)
    built = models(loaded, "*.q: 19 *.k: 11 L1.v: 13 *.o: 20 *.up: 20 L2.down: 9", cache=cache)
    for mask in (None, MASK):
        error = relative_error(logits(built["flash"], mask), logits(built["lowrank"], mask))
        assert error < limit(family)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda attention: setattr(attention, "window", attention.window + 1),
        lambda attention: setattr(attention, "window", attention.window - 1),
        lambda attention: setattr(attention, "norm", None),
        lambda attention: attention.parts.first_bias[attention.parts.k.at].add_(0.1),
        lambda attention: attention.parts.v.bias[0].add_(0.1),
        lambda attention: attention.parts.q.u[0].mul_(0.9),
    ],
)
def test_a_small_error_in_one_block_is_seen(decoder: Decoder, break_it: Callable[[Any], None]) -> None:
    # k is dense and so its bias in first_bias; the second layer has a window.
    flash = models(decoder("qwen2"), "*.q: 5 *.v: 7")["flash"]
    before = logits(flash)
    break_it(flash.base_model.layers[1].flash_attention)
    assert relative_error(logits(flash), before) > 1000 * limit("qwen2")


@every_decoder
def test_the_same_64_tokens_as_transformers(decoder: Decoder, family: str) -> None:
    loaded = decoder(family)
    flash = models(loaded, RankPlan.full_rank(loaded.shape))["flash"]
    ids = IDS[:2, :9]
    mine = tokens(flash, ids, max_new_tokens=64)
    assert mine.shape == (2, 64) and len(mine.unique()) > 5
    assert torch.equal(mine, tokens(loaded.model, ids, max_new_tokens=64))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (14, 2), (8, 1)])
@every_cache
def test_query_heads_share_key_heads(decoder: Decoder, heads: int, kv_heads: int, cache: str) -> None:
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": 8 * heads}
    loaded = decoder("llama", head_dim=16, num_hidden_layers=2, **sizes)
    built = models(loaded, "*.q: 7 *.k: 9 *.v: 5 *.o: 20", cache=cache)
    for mask in (None, MASK):
        assert relative_error(logits(built["flash"], mask), logits(built["lowrank"], mask)) < 2e-6
    ids = IDS[:2, :9]
    assert torch.equal(
        tokens(built["flash"], ids, max_new_tokens=64), tokens(built["lowrank"], ids, max_new_tokens=64)
    )


@every_decoder
@every_cache
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3},
        {"do_sample": True, "top_k": 20, "temperature": 2.0},
        {"cache_implementation": "static"},
        {"use_cache": False, "max_new_tokens": 6},
    ],
    ids=lambda how: next(iter(how), "greedy"),
)
def test_left_padded_batches_are_continued_as_lowrank_does(
    decoder: Decoder, family: str, cache: str, how: dict[str, Any]
) -> None:
    built = models(decoder(family), PLANS[0], cache=cache)
    left = MASK.clone()
    left[2:] = 1
    found = []
    for model in built.values():
        torch.manual_seed(7)
        found.append(tokens(model, attention_mask=left, **how))
    assert torch.equal(*found)


@every_decoder
def test_tokens_are_streamed(decoder: Decoder, family: str) -> None:
    flash = models(decoder(family), PLANS[0])["flash"]
    seen: list[int] = []

    class Listening(transformers.generation.streamers.BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            seen.extend(value.flatten().tolist())

        def end(self) -> None:
            seen.append(-1)

    out = tokens(flash, IDS[:1], streamer=Listening())
    assert seen == [*IDS[0].tolist(), *out[0].tolist(), -1]


class Least:
    """A cache that can do no more than take keys and values."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, k: torch.Tensor, v: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        if layer in self.held:
            k, v = (torch.cat([old, new], 2) for old, new in zip(self.held[layer], (k, v), strict=True))
        self.held[layer] = (k, v)
        return k, v


@every_decoder
@every_cache
@pytest.mark.parametrize("kind", ["dynamic", "sliding", "static"])
@torch.inference_mode()
def test_steps_give_what_one_forward_gives(decoder: Decoder, family: str, cache: str, kind: str) -> None:
    """A prompt, some tokens together, and the rest one by one, with padding on the left."""
    flash = models(decoder(family), PLANS[0], cache=cache)["flash"]
    left = MASK.clone()
    left[2:] = 1
    positions = (left.cumsum(1) - 1).clamp_min(0)
    whole = flash(IDS, attention_mask=left, position_ids=positions).logits
    held: Any = {
        "dynamic": transformers.DynamicCache,
        "sliding": lambda: transformers.DynamicCache(config=flash.config),
        "static": lambda: transformers.StaticCache(config=flash.config, max_cache_len=32),
    }[kind]()
    name = "cache" if "cache" in type(flash).forward.__wrapped__.__code__.co_varnames else "past_key_values"
    parts = []
    for part in (slice(0, 8), slice(8, 11), *(slice(i, i + 1) for i in range(11, 17))):
        given = {"attention_mask": left[:, : part.stop], "position_ids": positions[:, part], name: held}
        parts.append(flash(IDS[:, part], use_cache=True, **given).logits)
    error = relative_error(torch.cat(parts, 1)[left.bool()], whole[left.bool()])
    assert error < 1e-6


@torch.inference_mode()
def test_any_cache_that_takes_keys_and_values_will_do(decoder: Decoder) -> None:
    flash = models(decoder("llama"), PLANS[0])["flash"]
    attention = flash.base_model.layers[0]
    held = Least()
    rotary = flash.base_model.rotary_emb
    x = torch.randn(2, 9, 64, dtype=torch.float64)
    whole = attention(x.clone(), position_embeddings=rotary(x, torch.arange(9)[None]))
    flash.base_model.layers[0].flash_attention.window = None
    steps = [
        attention(x[:, part].clone(), position_embeddings=rotary(x, torch.arange(9)[None, part]), cache=held)
        for part in (slice(0, 5), slice(5, 6), slice(6, 9))
    ]
    assert relative_error(torch.cat(steps, 1), whole) < 1e-6


@every_decoder
def test_a_rank_space_cache_is_smaller_and_holds_as_much(decoder: Decoder, family: str) -> None:
    loaded = decoder(family)
    held = {}
    for cache in ("dense", "rank"):
        out = models(loaded, PLANS[0], cache=cache)["flash"](IDS)
        layers = (out.cache if hasattr(out, "cache") else out.past_key_values).layers
        held[cache] = [(layer.keys.shape[-1], layer.values.shape[-1]) for layer in layers]
    head_dim = loaded.shape.head_dim
    assert held["dense"] == [(head_dim, head_dim)] * 3
    # Keys are turned or normed at head dim in all but two families.
    assert held["rank"] == [(8 if family in ("gpt2", "opt") else head_dim, 8)] * 3


@every_decoder
@torch.inference_mode()
def test_the_callers_own_way_of_calling_works(decoder: Decoder, family: str) -> None:
    built = models(decoder(family), PLANS[0])
    positions = torch.arange(17)[None] + 3
    found = {}
    for name, model in built.items():
        embeds = model.get_input_embeddings()(IDS)
        kept = embeds.clone()
        found[name] = [
            model(IDS, position_ids=positions).logits,
            model(IDS, logits_to_keep=2).logits,
            model(inputs_embeds=embeds).logits,
            model.base_model(IDS, use_cache=False).last_hidden_state,
            *model(IDS, output_hidden_states=True).hidden_states,
        ]
        assert torch.equal(embeds, kept)
    assert found["flash"][1].shape == (5, 2, 50)
    for mine, theirs in zip(found["flash"], found["lowrank"], strict=True):
        assert relative_error(mine, theirs) < 2e-6


@every_decoder
@every_cache
def test_a_checkpoint_opens_as_it_was_saved(
    decoder: Decoder, family: str, cache: str, tmp_path: Path
) -> None:
    built = models(decoder(family, dtype=torch.float32), PLANS[1], cache=cache)
    built["flash"].save_pretrained(tmp_path)
    again = flashsvd.load_compressed(tmp_path)
    settings = again.config.quantization_config
    assert (settings.engine, settings.cache) == ("flash", cache)
    assert torch.equal(logits(again), logits(built["flash"]))
    assert torch.equal(tokens(again), tokens(built["flash"]))
    lowrank = flashsvd.load_compressed(tmp_path, engine="lowrank")
    assert torch.equal(logits(lowrank), logits(built["lowrank"]))
    other = flashsvd.load_compressed(tmp_path, cache="dense")
    assert relative_error(logits(other), logits(lowrank)) < 3e-6


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pipeline_writes_text(decoder: Decoder, family: str, tmp_path: Path) -> None:
    built = models(decoder(family), PLANS[0])
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123))]
    (tmp_path / "vocab.txt").write_text("\n".join([*vocabulary, *(f"x{i}" for i in range(19))]))
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"), padding_side="left")
    texts = []
    for model in built.values():
        write = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
        answers = write(["a b c", "d"], batch_size=2, max_new_tokens=8, do_sample=False)
        texts.append([answer[0]["generated_text"] for answer in answers])
    assert texts[0] == texts[1] and len(texts[0][0]) > len("a b c")


@pytest.mark.parametrize("kind", ["llama3", "linear", "yarn"])
def test_positions_are_scaled_as_the_model_says(decoder: Decoder, kind: str) -> None:
    settings = {
        "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
        "yarn": {"original_max_position_embeddings": 16},
    }.get(kind, {})
    rope = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, **settings}
    built = models(decoder("llama", rope_parameters=rope), PLANS[0])
    assert relative_error(logits(built["flash"], MASK), logits(built["lowrank"], MASK)) < 2e-6
    plain = models(decoder("llama"), PLANS[0])["flash"]
    assert relative_error(logits(built["flash"], MASK), logits(plain, MASK)) > 1e-3


@pytest.mark.parametrize(
    "settings", [{"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}]
)
@every_cache
def test_scores_are_scaled_as_the_model_says(decoder: Decoder, settings: dict[str, bool], cache: str) -> None:
    built = models(decoder("gpt2", **settings), PLANS[0], cache=cache)
    assert relative_error(logits(built["flash"]), logits(built["lowrank"])) < 1e-12
    plain = models(decoder("gpt2"), PLANS[0])["flash"]
    assert relative_error(logits(built["flash"]), logits(plain)) > 1e-3


def test_what_flash_does_not_run_says_so(decoder: Decoder) -> None:
    loaded = decoder("llama")
    flash = models(loaded, PLANS[0])["flash"]
    with pytest.raises(InputError, match="padding mask"):
        flash(IDS, attention_mask=torch.ones(5, 1, 17, 17))
    with pytest.raises(InputError, match="not several packed into one"):
        packed = torch.cat([torch.arange(9), torch.arange(8)])[None].expand(5, -1)
        flash(IDS, position_ids=packed, use_cache=False)
    with pytest.raises(InputError, match="must cover all 17 tokens so far, those in the cache too, got 16"):
        flash(IDS, attention_mask=MASK[:, :16])
    with pytest.raises(InputError, match="cache must be one of dense, rank, got 'half'"):
        models(loaded, PLANS[0], cache="half")
    with pytest.raises(InputError, match="cache='rank' is for decoders, without rebuild=True"):
        models(loaded, PLANS[0], cache="rank", rebuild=True)
    with pytest.raises(InputError, match=r"Llama runs in graphs through flashsvd\.decoding"):
        models(loaded, PLANS[0], graph=True)
    with pytest.raises(ModelError, match="norms after its sublayers, as opt-350m does"):
        models(decoder("opt", do_layer_norm_before=False), PLANS[0])
    with pytest.raises(ModelError, match="cross attention"):
        decoder("gpt2", add_cross_attention=True)


def test_every_block_is_streamed(decoder: Decoder) -> None:
    flash = models(decoder("mistral"), PLANS[0])["flash"]
    attentions = [block.flash_attention for block in flash.base_model.layers]
    assert all(isinstance(attention, CausalAttention) for attention in attentions)
    # transformers counts the query itself.
    assert [attention.window for attention in attentions] == [4] * 3
