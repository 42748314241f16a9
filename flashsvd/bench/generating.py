"""What a user gets who calls transformers' `generate` with a static cache, token for token."""

from __future__ import annotations

import copy
import itertools
import time
from typing import Any

import torch


class StaticGenerate:
    """`model.generate` of transformers with cache_implementation="static", for which it compiles the forward itself
    where there is a GPU; greedy, and no token ends it."""

    def __init__(self, model: Any, new_tokens: int) -> None:
        self._model = model
        self._config = copy.deepcopy(model.generation_config)
        self._config.update(
            eos_token_id=None,
            pad_token_id=0,
            do_sample=False,
            max_new_tokens=new_tokens + 1,
            cache_implementation="static",
        )

    def write(self, ids: torch.Tensor) -> list[float]:
        """Writes on after prompts ids [B, S]; milliseconds from every new token to the next, as whoever streams them
        would see them."""
        clock = _Clock()
        self._generate(ids, self._config, stopping_criteria=[clock])
        return [(after - before) * 1e3 for before, after in itertools.pairwise(clock.times)]

    def logits(self, ids: torch.Tensor, shown: torch.Tensor) -> tuple[torch.Tensor, int]:
        """[steps + 1, B, V] after prompts ids [B, S], shown tokens [steps, B] in place of its own; bytes of the cache.

        As many tokens are written as by `write`: what was compiled serves both.
        """
        told = copy.deepcopy(self._config)
        told.update(output_logits=True, return_dict_in_generate=True)
        found = self._generate(ids, told, logits_processor=[_Forced(ids.shape[1], shown)])
        cache = found.cache if "cache" in found else found.past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        return torch.stack(found.logits[: len(shown) + 1]), held

    @torch.no_grad()
    def _generate(self, ids: torch.Tensor, config: Any, **options: Any) -> Any:
        return self._model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config, **options
        )


class _Clock:
    """A stopping criterion that stops nothing and notes when tokens are there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        ids[:, -1].tolist()
        self.times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


class _Forced:
    """A logits processor that leaves one token to choose, as long as there are some to show."""

    def __init__(self, prompt: int, shown: torch.Tensor) -> None:
        self._prompt, self._shown = prompt, shown

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = ids.shape[1] - self._prompt
        if place >= len(self._shown):
            return scores
        forced = torch.full_like(scores, float("-inf"))
        return forced.scatter_(1, self._shown[place].to(ids.device)[:, None], 0.0)
