"""How the next token is picked: the most likely one, or by the probabilities that transformers' own warpers leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from flashsvd.decoding import sampling as sampling_module
from flashsvd.decoding.sampling import Sampling, pick
from flashsvd.errors import InputError

DRAWS = 40_000
# Of 12 tokens the shares of as many draws are off by 0.007 in all, on average; what is told apart differs by 0.04.
NEAR, FAR = 0.015, 0.04
LOGITS = torch.linspace(2.5, -3.0, 12)[torch.tensor([3, 7, 0, 11, 5, 1, 9, 2, 10, 4, 8, 6])]


def probabilities(how: Sampling, logits: torch.Tensor = LOGITS) -> torch.Tensor:
    """What torch.multinomial would draw by after the warpers of transformers."""
    scores = TemperatureLogitsWarper(how.temperature)(None, logits[None])
    if how.top_k is not None:
        scores = TopKLogitsWarper(how.top_k)(None, scores)
    if how.top_p is not None:
        scores = TopPLogitsWarper(how.top_p)(None, scores)
    return scores[0].softmax(-1)


def shares(how: Sampling, logits: torch.Tensor = LOGITS) -> torch.Tensor:
    """How often each token is drawn."""
    generator = torch.Generator().manual_seed(how.seed)
    drawn = pick(logits.expand(DRAWS, -1), how, generator)
    return drawn.bincount(minlength=len(logits)) / DRAWS


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Their total variation."""
    return float((a - b).abs().sum() / 2)


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 4.0},
    {"temperature": 1.0, "top_k": 4},
    {"temperature": 2.0, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.7},
    {"temperature": 2.0, "top_p": 0.5},
    {"temperature": 2.0, "top_k": 8, "top_p": 0.7},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tokens_are_drawn_by_their_probabilities(settings: dict[str, Any]) -> None:
    how = Sampling(**settings, seed=3)
    expected, found = probabilities(how), shares(how)
    assert apart(found, expected) < NEAR
    assert not found[expected == 0].any()
    others = [Sampling(**one) for one in SETTINGS if one != settings]
    others.append(Sampling(settings["temperature"] * 1.4, settings.get("top_k"), settings.get("top_p")))
    if "top_k" in settings and "top_p" not in settings:
        others += [Sampling(**{**settings, "top_k": settings["top_k"] + by}) for by in (-1, 1)]
    assert min(apart(found, probabilities(other)) for other in others) > FAR


@pytest.mark.parametrize("noise", ["none", "uniform", "of all rows at once"])
def test_other_noise_is_seen(monkeypatch: pytest.MonkeyPatch, noise: str) -> None:
    def wrong(shape: torch.Size, **options: Any) -> torch.Tensor:
        if noise == "of all rows at once":
            return torch.rand(shape[1:], **options).expand(shape)
        even = torch.full(shape, 0.5) if noise == "none" else torch.rand(shape, **options)
        # What the double logarithm makes of it is again that.
        return torch.exp(-torch.exp(-even))

    class Torch:
        rand = staticmethod(wrong)

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    monkeypatch.setattr(sampling_module, "torch", Torch())
    assert apart(shares(Sampling(1.0)), probabilities(Sampling(1.0))) > FAR


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=9),
    st.sampled_from([0.1, 1.0, 50.0]),
    st.none() | st.integers(1, 12),
    st.none() | st.floats(1e-6, 1.0),
    st.integers(0, 2**31),
)
def test_what_is_drawn_was_to_be_had(
    values: list[float], temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> None:
    how = Sampling(temperature, top_k, top_p, seed)
    logits = torch.tensor([values, values])
    drawn = pick(logits, how, torch.Generator().manual_seed(seed))
    assert drawn.shape == (2,) and drawn.dtype == torch.int64
    scores = logits[0] / temperature
    for token in drawn.tolist():
        likelier = scores > scores[token]
        assert top_k is None or int(likelier.sum()) < top_k
        assert top_p is None or float(scores.double().softmax(-1)[likelier].sum()) < top_p + 1e-5


def test_temperature_0_takes_the_likeliest_and_no_noise() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    assert Sampling().greedy and not Sampling(0.1).greedy
    assert torch.equal(pick(logits, Sampling(), None), logits.argmax(-1))
    cold = pick(logits, Sampling(1e-4), torch.Generator().manual_seed(0))
    assert torch.equal(cold, logits.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_drawn_from_in_fp32(dtype: torch.dtype) -> None:
    how = Sampling(1.0, top_p=0.9, seed=1)
    rounded = LOGITS.to(dtype)
    generator = torch.Generator().manual_seed(1)
    drawn = pick(rounded.expand(DRAWS, -1), how, generator).bincount(minlength=12) / DRAWS
    assert apart(drawn, probabilities(how, rounded.float())) < NEAR


def test_a_seed_draws_the_same() -> None:
    logits = torch.zeros(64, 1000)
    first, again, other = (
        pick(logits, Sampling(1.0), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": -0.1}, "temperature must be a number from 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be a number from 0, got nan"),
        ({"temperature": float("inf")}, "temperature must be a number from 0, got inf"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1, got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        Sampling(**settings)
    assert str(error.value) == said
