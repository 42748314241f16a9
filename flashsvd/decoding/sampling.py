"""How the next token is picked from the logits, on the device that they are on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flashsvd.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 takes the most likely token. top_k: only so many of the most likely ones; top_p: only the most
    likely ones that together have this probability (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751).

    Raises InputError for numbers out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be a number from 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def pick(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> torch.Tensor:
    """Next tokens [B] for logits [B, V]; nothing waits for the device.

    A draw is the largest of log-probability plus Gumbel noise, which needs no sum over the vocabulary.

    >>> pick(torch.tensor([[0.1, 2.0, 0.3]]), Sampling(), None)
    tensor([1])
    """
    if sampling.greedy:
        return logits.argmax(-1)
    scores = logits.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, -1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, places = scores.sort(-1, descending=True)
        shares = ordered.softmax(-1)
        # The token that crosses the line is kept.
        past = shares.cumsum(-1) - shares >= sampling.top_p
        scores = scores.scatter(-1, places, ordered.masked_fill(past, -math.inf))
    noise = torch.rand(scores.shape, generator=generator, device=scores.device)
    gumbel = -torch.log((-torch.log(noise.clamp_min(1e-20))).clamp_min(1e-20))
    return (scores + gumbel).argmax(-1)
