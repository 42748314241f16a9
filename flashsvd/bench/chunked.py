"""What a user without our kernels would do to save memory: fewer sequences at a time, feed-forward in chunks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flashsvd.models.family import Family, with_methods
from flashsvd.models.linears import LINEARS
from flashsvd.models.shape import ModelShape

CHUNK_TOKENS = 2048
"""Tokens per chunk of the chunked feed-forward: the wide activation of BERT-base is then 12 MiB in bf16, and the
products are still large enough to run near their full rate."""

MICRO_BATCH = 8
"""Sequences per micro-batch."""


def micro_batched(
    model: Callable[[torch.Tensor], Any], ids: torch.Tensor, size: int = MICRO_BATCH
) -> dict[str, torch.Tensor]:
    """Runs token ids [B, S] in batches of `size` and joins every tensor of the outputs along the batch."""
    parts = [dict(model(part).items()) for part in ids.split(size)]
    return {
        name: torch.cat([part[name] for part in parts])
        for name, value in parts[0].items()
        if isinstance(value, torch.Tensor)
    }


def can_chunk(model: nn.Module, family: Family, shape: ModelShape) -> bool:
    """Whether `chunked_feed_forward` knows where this model's feed-forward is."""
    return all(_place(model, family, layer) is not None for layer in range(len(shape.layers)))


def chunked_feed_forward(
    model: Any, family: Family, shape: ModelShape, chunk_tokens: int = CHUNK_TOKENS
) -> Any:
    """A copy of a dense model, sharing its weights, whose feed-forward runs over chunks of tokens.

    transformers' own `chunk_size_feed_forward` cuts along the sequence, needs it to divide evenly and joins copies;
    this cuts all B·S tokens and writes into one output.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    clone = copy.deepcopy(model, memo=dict(shared))
    for layer in range(len(shape.layers)):
        place = _place(clone, family, layer)
        assert place is not None
        module, method = place
        with_methods(module, **{method: _in_chunks(getattr(type(module), method), chunk_tokens)})
    return clone


def _place(model: Any, family: Family, layer: int) -> tuple[nn.Module, str] | None:
    """The module and its method that make up one layer's feed-forward, or None where no single one does."""
    up, down = (_owner(model, family, layer, name) for name in ("up", "down"))
    if up == down:
        return model.base_model.get_submodule(up), "forward"
    block = family.layers(model.base_model)[layer]
    return (block, "feed_forward_chunk") if hasattr(block, "feed_forward_chunk") else None


def _owner(model: Any, family: Family, layer: int, name: str) -> str:
    """The path of the module that calls a slot's linear."""
    path = family.path(layer, name).rpartition(".")[0]
    fused = isinstance(model.base_model.get_submodule(path), LINEARS)
    return path.rpartition(".")[0] if fused else path


def _in_chunks(original: Callable[..., torch.Tensor], chunk_tokens: int) -> Callable[..., torch.Tensor]:
    def run(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        tokens = hidden.reshape(-1, hidden.shape[-1])
        out = torch.empty_like(tokens)
        for start in range(0, len(tokens), chunk_tokens):
            out[start : start + chunk_tokens] = original(self, tokens[start : start + chunk_tokens])
        return out.view(hidden.shape)

    return run
