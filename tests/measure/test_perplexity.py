"""Perplexity against a loop that predicts one token at a time, and the divergence from the dense model beside it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import log_softmax

from flashsvd.errors import FlashSVDError, InputError
from flashsvd.measure.language import Text
from flashsvd.measure.perplexity import perplexity, spans
from flashsvd.models.load import LoadedModel

TOKENS = torch.randint(0, 97, (61,), generator=torch.Generator().manual_seed(0))


def make_llama(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).double().eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.3)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_llama(0)


@torch.inference_mode()
def one_by_one(model: Any, window: int, stride: int) -> list[float]:
    """-log p of every token but the first, each from its own call; what it sees is the window it is first inside."""
    found = []
    for target in range(1, len(TOKENS)):
        start = 0
        while start + window < target:
            start += stride
        logits = model(input_ids=TOKENS[None, start:target]).logits[0, -1]
        found.append(-float(torch.log_softmax(logits, -1)[TOKENS[target]]))
    return found


@given(st.integers(2, 200), st.integers(1, 40), st.data())
def test_every_token_but_the_first_is_scored_once(tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    scored: list[int] = []
    for span in spans(tokens, window, stride):
        assert 1 <= span.stop - span.start <= window and span.stop < tokens
        mine = range(span.stop + 1 - span.scored, span.stop + 1)
        assert mine[0] > span.start
        assert mine[0] - span.start >= min(mine[0], window - stride + 1)
        scored += mine
    assert scored == list(range(1, tokens))


@pytest.mark.parametrize(
    ("window", "stride", "batch"), [(16, 16, 1), (16, 4, 3), (8, 1, 5), (32, 31, 1), (1, 1, 7)]
)
def test_it_is_the_mean_of_single_predictions(llama: Any, window: int, stride: int, batch: int) -> None:
    """In fp64. Leaving a token out, or one more token of context, is off by far more than the tolerance."""
    found = perplexity(llama, TOKENS, window=window, stride=stride, batch=batch)
    expected = one_by_one(llama, window, stride)
    assert found.nll_sum == pytest.approx(sum(expected), rel=1e-10)
    assert found.value == pytest.approx(math.exp(np.mean(expected)), rel=1e-10)
    assert (found.tokens, found.window, found.stride) == (60, window, stride)
    assert found.low < found.value < found.high
    for start in (0, 1):
        assert abs(np.mean(expected[start:][: 59 - start]) / np.mean(expected) - 1) > 1e-6


def test_more_context_is_another_number(llama: Any) -> None:
    whole = perplexity(llama, TOKENS[:32], window=32).nll_sum
    halves = perplexity(llama, TOKENS[:32], window=16).nll_sum
    assert abs(whole - halves) > 1e-3


def test_the_batch_and_the_softmax_chunks_change_nothing(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = perplexity(llama, TOKENS, window=16, batch=4)
    monkeypatch.setattr("flashsvd.measure.perplexity._SOFTMAX_BYTES", 97 * 4 * 3)
    monkeypatch.setattr("flashsvd.measure.perplexity._LOGIT_BYTES", 1)
    seen: list[int] = []
    handle = llama.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True
    )
    parts = perplexity(llama, TOKENS, window=16, batch=4)
    handle.remove()
    assert parts.nll_sum == pytest.approx(whole.nll_sum, rel=1e-12) and set(seen) == {1}


def test_the_interval_narrows_with_the_text_and_repeats_with_the_seed(llama: Any) -> None:
    long = TOKENS.repeat(8)
    some, all_of_it = (perplexity(llama, text, window=4, batch=64, seed=1) for text in (TOKENS, long))
    assert (math.log(all_of_it.high) - math.log(all_of_it.low)) < 0.6 * (
        math.log(some.high) - math.log(some.low)
    )
    assert some == perplexity(llama, TOKENS, window=4, batch=64, seed=1)
    metric = some.metric(seed=1)
    assert (metric.name, metric.value, metric.n, metric.floor) == ("perplexity", some.value, 60, None)


class Even:
    """Gives every token the same chance, but for one that it gives what it is told to."""

    config = SimpleNamespace(vocab_size=50)
    device = torch.device("cpu")

    def __init__(self, odd: float = 0.0) -> None:
        self.odd = odd

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        logits = torch.zeros(*input_ids.shape, 50)
        logits[input_ids == 49] = self.odd
        return SimpleNamespace(logits=logits)


def test_an_even_guess_scores_the_vocabulary() -> None:
    assert perplexity(Even(), torch.arange(50), window=7).value == pytest.approx(50)


def test_a_loss_that_is_not_finite_fails_the_run_and_names_the_tokens() -> None:
    tokens = torch.tensor([1] * 20 + [49] + [1] * 20)
    with pytest.raises(FlashSVDError, match="not finite in tokens 15 to 22"):
        perplexity(Even(math.nan), tokens, window=7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"window": 33}, "window must be from 1 to 32"),
        ({"window": 0}, "window must be from"),
        ({"stride": 0}, "stride must be from 1 to the window"),
        ({"stride": 17}, "stride must be from 1 to the window"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"token_ids": TOKENS[:1]}, "at least two tokens"),
        ({"token_ids": TOKENS[None]}, "at least two tokens"),
    ],
)
def test_numbers_out_of_range(llama: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        perplexity(llama, **{"token_ids": TOKENS, "window": 16, **changes})


def test_only_causal_language_models_have_a_perplexity(tiny: LoadedModel) -> None:
    from transformers import BertForMaskedLM, BertLMHeadModel

    with pytest.raises(InputError, match="needs a causal language model, got BertForSequenceClassification"):
        perplexity(tiny.model, TOKENS, window=16)
    for kind in (BertForMaskedLM, BertLMHeadModel):
        with pytest.raises(InputError, match=f"got {kind.__name__}"):
            perplexity(kind(tiny.model.config), TOKENS, window=16)


# Beside the dense model


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (32, 32)])
def test_one_reading_gives_what_two_do(
    llama: Any, window: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_llama(1)
    monkeypatch.setattr("flashsvd.measure.language._CHUNK_BYTES", 97 * 8 * 4)
    text = Text(TOKENS, llama, window=window, stride=stride, batch=3)
    found, apart = text.beside_dense(other)
    assert found == perplexity(other, TOKENS, window=window, stride=stride, batch=3)
    kl = []
    for span in spans(len(TOKENS), window, stride):
        p, q = (
            log_softmax(model(TOKENS[None, span.start : span.stop]).logits[0, -span.scored :].double(), -1)
            for model in (llama, other)
        )
        kl.append((p.exp() * (p - q)).sum(-1))
    torch.testing.assert_close(apart.kl, torch.cat(kl), rtol=1e-4, atol=1e-6)
    assert len(apart.kl) == len(apart.agrees) == found.tokens == len(TOKENS) - 1
    assert apart.kl.mean() > 0 and not apart.agrees.all()


def test_what_the_dense_model_said_is_kept_or_asked_again(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_llama(1)
    asked = Text(TOKENS, llama, window=16).beside_dense(other)
    calls: list[int] = []
    hook = llama.register_forward_hook(lambda *_: calls.append(1))
    try:
        for kept, expected in ((2**28, 0), (97 * 16, 3), (0, 4)):
            monkeypatch.setattr("flashsvd.measure.language._KEPT_NUMBERS", kept)
            text = Text(TOKENS, llama, window=16)
            text.perplexity(llama)
            calls.clear()
            found = text.beside_dense(other)
            assert len(calls) == expected, "one call for each window that is not kept"
            assert found[0] == asked[0] and torch.equal(found[1].kl, asked[1].kl)
    finally:
        hook.remove()


def test_a_model_is_no_distance_from_itself(llama: Any) -> None:
    _, apart = Text(TOKENS, llama, window=16).beside_dense(llama)
    assert apart.kl.max() == 0 and apart.agrees.all()


def test_what_cannot_be_compared(llama: Any) -> None:
    with pytest.raises(FlashSVDError, match="logits of the dense model are not finite in tokens 1 to 1"):
        Text(torch.tensor([49, 2]), Even(math.nan), window=1).beside_dense(Even())
    with pytest.raises(FlashSVDError, match="the loss is not finite in tokens 1 to 2"):
        Text(torch.tensor([49, 2]), Even(), window=1).beside_dense(Even(math.nan))
    with pytest.raises(InputError, match="50 and 97 tokens"):
        Text(TOKENS % 50, Even(), window=16).beside_dense(llama)
