"""The cache of fixed size: what transformers asks of one, in memory that is made once."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers

from flashsvd.decoding.cache import CacheWidths, FixedCache
from flashsvd.errors import InputError
from tests.small_decoders import Decoder, every_decoder

WIDTHS = [CacheWidths(2, 8, 4), CacheWidths(1, 16, 16)]


def cache(batch: int = 3, context: int = 7, dtype: torch.dtype = torch.float32) -> FixedCache:
    return FixedCache(WIDTHS, batch, context, torch.zeros(0, dtype=dtype))


def states(tokens: int, layer: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = WIDTHS[layer]
    keys, values = (
        torch.randn(3, width.kv_heads, tokens, columns, generator=generator)
        for columns in (width.key, width.value)
    )
    return keys, values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bytes_are_counted_before_and_after_it_is_made(dtype: torch.dtype) -> None:
    made = cache(dtype=dtype)
    assert made.nbytes == sum(width.nbytes(3, 7, dtype.itemsize) for width in WIDTHS)
    assert made.nbytes == 3 * 7 * (2 * 12 + 32) * dtype.itemsize


@pytest.mark.parametrize("layer", [0, 1])
def test_tokens_are_appended(layer: int) -> None:
    made = cache()
    first, second = states(4, layer, 1), states(2, layer, 2)
    for given, length in ((first, 4), (second, 6)):
        found = made.update(*given, layer)
        assert [part.shape[2] for part in found] == [length, length]
    for side in (0, 1):
        assert torch.equal(found[side], torch.cat([first[side], second[side]], 2))
        # Views of what a step reads.
        assert found[side].data_ptr() == made.of_layer(layer)[side].data_ptr()
    assert made.get_seq_length(layer) == 6 and made.get_mask_sizes(1, layer) == (7, 0)


def test_going_back_writes_nothing() -> None:
    made = cache()
    for layer in (0, 1):
        made.update(*states(5, layer), layer)
    kept = [part.clone() for part in made.of_layer(0)]
    made.set_length(2)
    assert made.length == 2 and made.get_seq_length(1) == 2
    assert all(torch.equal(part, before) for part, before in zip(made.of_layer(0), kept, strict=True))
    found = made.update(*states(1, 0, 9), 0)
    assert torch.equal(found[0][:, :, :2], kept[0][:, :, :2]) and torch.equal(
        found[0][:, :, 2:], states(1, 0, 9)[0]
    )


def test_more_than_it_holds_is_refused() -> None:
    made = cache()
    made.update(*states(7, 0), 0)
    with pytest.raises(InputError, match=r"^the cache holds 7 tokens, got 8: make it with a larger context$"):
        made.update(*states(1, 0), 0)


@every_decoder
@torch.inference_mode()
def test_transformers_takes_it_for_a_cache(decoder: Decoder, family: str) -> None:
    """A model of transformers gives the same logits over it as over its own, in several calls, padded on the left."""
    loaded = decoder(family)
    shape, model = loaded.shape, loaded.model
    widths = [CacheWidths(shape.kv_heads, shape.head_dim, shape.head_dim)] * len(shape.layers)
    ours = FixedCache(widths, 2, 20, torch.zeros(0, dtype=torch.float64))
    theirs = transformers.DynamicCache(config=model.config)
    ids = torch.randint(2, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 12).long()
    mask[1, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    for part in (slice(0, 7), slice(7, 10), slice(10, 11), slice(11, 12)):
        given = {
            "attention_mask": mask[:, : part.stop],
            "position_ids": positions[:, part],
            "use_cache": True,
        }
        found, expected = (model(ids[:, part], **given, **{name: held}).logits for held in (ours, theirs))
        valid = mask[:, part].bool()
        torch.testing.assert_close(found[valid], expected[valid], rtol=1e-9, atol=1e-9)
    assert ours.length == 12
