"""Tokens: those of transformers' own greedy search, for every family and engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flashsvd.ranks import RankPlan
from tests.decoding.small_runtimes import COMPRESSED, ENGINES, IDS, LEFT, PLANS, Small, small, written
from tests.small_decoders import Decoder, every_decoder

every_engine = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture(scope="module")
def expected() -> Callable[[Small, str, str], torch.Tensor]:
    """The 64 tokens of transformers for a small model, made once per kind of weights."""
    made: dict[tuple[str, bool], torch.Tensor] = {}

    def find(model: Small, family: str, engine: str) -> torch.Tensor:
        key = (family, engine == "dense")
        if key not in made:
            made[key] = written(model.reference(engine), IDS, LEFT, 64)
        return made[key]

    return find


@every_decoder
@every_engine
def test_the_same_64_tokens_as_transformers(
    decoder: Decoder, expected: Callable[[Small, str, str], torch.Tensor], family: str, engine: str
) -> None:
    """Three prompts of unequal lengths, padded on the left."""
    model = small(decoder(family, dtype=torch.float32), PLANS[1])
    found = model.runtime(engine).generate(IDS, LEFT, max_new_tokens=64).tokens
    assert found.shape == (3, 64) and len(found.unique()) > 5
    assert torch.equal(found, expected(model, family, engine))


@every_decoder
def test_at_full_rank_they_are_the_dense_models(decoder: Decoder, family: str) -> None:
    loaded = decoder(family, dtype=torch.float32)
    full = small(loaded, RankPlan.full_rank(loaded.shape))
    dense = written(loaded.model, IDS[:1], None, 32)
    for engine in COMPRESSED:
        found = full.runtime(engine, batch=1).generate(IDS[:1], max_new_tokens=32)
        assert torch.equal(found.tokens, dense)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (14, 2), (8, 1)])
def test_query_heads_share_key_heads(decoder: Decoder, heads: int, kv_heads: int) -> None:
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": 8 * heads}
    loaded = decoder("llama", dtype=torch.float32, head_dim=16, num_hidden_layers=2, **sizes)
    model = small(loaded, "*.q: 7 *.k: 9 *.v: 5 *.o: 20")
    expected = {"dense": written(loaded.model, IDS, LEFT, 64)}
    expected |= dict.fromkeys(COMPRESSED, written(model.reference("lowrank"), IDS, LEFT, 64))
    for engine in ENGINES:
        found = model.runtime(engine).generate(IDS, LEFT, max_new_tokens=64).tokens
        assert torch.equal(found, expected[engine]), engine


@every_engine
def test_a_prompt_among_others_is_written_on_as_if_alone(decoder: Decoder, engine: str) -> None:
    model = small(decoder("mistral", dtype=torch.float32), PLANS[0])
    together = model.runtime(engine).generate(IDS, LEFT, max_new_tokens=24).tokens
    alone = model.runtime(engine, batch=1)
    for row, (ids, mask) in enumerate(zip(IDS, LEFT, strict=True)):
        assert torch.equal(alone.generate(ids[mask][None], max_new_tokens=24).tokens[0], together[row])
