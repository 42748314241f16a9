"""Prompts as tokens: read, measured against the context, and side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashsvd.errors import InputError
from flashsvd.generation.request import MOST_NEW_TOKENS, GenerateRequest
from flashsvd.models.load import LoadedModel


def encode(request: GenerateRequest, loaded: LoadedModel) -> list[list[int]]:
    """Token ids of every prompt. Raises InputError where the model has no tokenizer, or a prompt no tokens."""
    if request.prompt_tokens:
        generator = torch.Generator().manual_seed(request.seed)
        vocabulary = loaded.model.config.vocab_size
        return [
            torch.randint(vocabulary, (count,), generator=generator).tolist()
            for count in request.prompt_tokens
        ]
    if loaded.tokenizer is None:
        raise InputError(
            f"{loaded.name} has no tokenizer to read a prompt with: give --prompt-tokens N for N random tokens"
        )
    found = [list(map(int, loaded.tokenizer(text)["input_ids"])) for text in request.prompts]
    for place, ids in enumerate(found, 1):
        if not ids:
            raise InputError(f"prompt {place} is empty once it is read as tokens: give some text")
    return found


def room_for(request: GenerateRequest, loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> int:
    """New tokens to write. Raises InputError where a prompt or these are more than the context holds."""
    limit = loaded.shape.max_positions
    longest = max(map(len, prompts))
    if longest >= limit:
        place = next(place for place, ids in enumerate(prompts, 1) if len(ids) == longest)
        raise InputError(
            f"prompt {place} has {longest} tokens, but the context of {loaded.name} is {limit}, of which at least one "
            "is written: shorten it"
        )
    left = limit - longest
    if request.max_new_tokens is None:
        return min(MOST_NEW_TOKENS, left)
    if request.max_new_tokens > left:
        raise InputError(
            f"max-new-tokens must be at most {left} after a prompt of {longest} tokens (the context of {loaded.name} "
            f"is {limit}), got {request.max_new_tokens}"
        )
    return request.max_new_tokens


def padded(prompts: Sequence[Sequence[int]], loaded: LoadedModel) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompts side by side, padded on the left, [B, S], and which are tokens, None where all are."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = True
    return ids.to(loaded.device), None if bool(mask.all()) else mask.to(loaded.device)
