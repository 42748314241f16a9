"""What every layer of a decoder computes with, whichever engine the model is built for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flashsvd.engines.feed_forward import FeedForwardParts, feed_forward_parts
from flashsvd.engines.parts import CausalParts, causal_parts
from flashsvd.engines.stream import layer_linears
from flashsvd.engines.sublayer import Norm, norm_of
from flashsvd.errors import ModelError
from flashsvd.models.family import Decoder, Family, families
from flashsvd.models.shape import ModelShape


@dataclass(frozen=True)
class Layer:
    """One block: its packed projections, its norms, and how far back a query sees (None for all)."""

    attention: CausalParts
    feed_forward: FeedForwardParts
    attention_norm: Norm
    feed_forward_norm: Norm
    head_norms: tuple[Norm, Norm] | None
    window: int | None


@dataclass(frozen=True)
class Model:
    """A decoder as a step needs it. positions: the table of learned positions and the offset into it, or None; eps: of
    every norm."""

    layers: tuple[Layer, ...]
    embedding: torch.Tensor
    positions: tuple[torch.Tensor, int] | None
    final_norm: Norm
    head: torch.Tensor
    eps: float
    shape: ModelShape


def decoder_of(family: Family) -> Decoder:
    """What a family says of its decoder. Raises ModelError for a family without."""
    if family.decoder is None:
        known = ", ".join(sorted(name for name, found in families().items() if found.decoder is not None))
        raise ModelError(
            f"{family.title} does not write text: expected one of {known}; to add a decoder, give the family in "
            f"flashsvd/models/families/{family.model_type.replace('-', '_')}.py its `decoder`"
        )
    return family.decoder


def read_model(model: Any, family: Family, shape: ModelShape) -> Model:
    """Everything that steps of a causal language model of transformers read.

    Weights are the model's own; where several are packed into one, the model's become views of that.

    Raises ModelError for a family, or a variant of one, that cannot be decoded here.
    """
    decoder, base = decoder_of(family), model.base_model
    embedding = base.get_submodule(decoder.embedding).weight
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None or not isinstance(head, nn.Linear):
        raise ModelError(
            f"{type(model).__name__} has no plain head over the vocabulary: load it for causal language modelling"
        )
    if embedding.shape[1] != shape.hidden or decoder.final_norm is None:
        raise ModelError(
            f"this variant of {family.title} projects its embeddings or ends without a norm: no step is written for it"
        )
    final_norm = _norm(base, decoder.final_norm)
    positions = None
    if decoder.positions is not None:
        path, offset = decoder.positions
        positions = (base.get_submodule(path).weight.detach(), offset)
    layers = tuple(_layer(model, family, shape, decoder, index) for index in range(len(shape.layers)))
    eps = _eps(final_norm, layers)
    return Model(layers, embedding.detach(), positions, final_norm, head.weight.detach(), eps, shape)


def _norm(base: nn.Module, path: str) -> Norm:
    owner, _, leaf = path.rpartition(".")
    module = getattr(base.get_submodule(owner), leaf)
    found = None if module is None else norm_of(module)
    if found is None or not isinstance(getattr(found.module, "weight", None), torch.Tensor):
        raise ModelError(f"{path} is no norm with a weight: no step is written for this variant")
    return found


def _eps(final_norm: Norm, layers: Sequence[Layer]) -> float:
    """That of all norms."""
    norms = [final_norm]
    for layer in layers:
        norms += [layer.attention_norm, layer.feed_forward_norm, *(layer.head_norms or ())]
    found = {norm.eps for norm in norms}
    if len(found) > 1:
        raise ModelError(
            f"norms must have one eps, got {', '.join(map(str, sorted(found)))}: no step is written"
        )
    return found.pop()


def _layer(model: Any, family: Family, shape: ModelShape, decoder: Decoder, index: int) -> Layer:
    base = model.base_model
    block: Any = family.layers(base)[index]
    norms = {name: _norm(base, family.norm(index, name)) for name in ("attention", "feed_forward")}
    head_norms = None
    if decoder.head_norms is not None:
        q_norm, k_norm = (_norm(base, path) for path in decoder.head_norms(index))
        head_norms = (q_norm, k_norm)
    if hasattr(block, "flash_attention"):
        # What the flash engine packed is there already.
        attention, feed_forward = block.flash_attention.parts, block.flash_feed_forward.parts
    else:
        linears = layer_linears(base, family, shape, index)
        attention = causal_parts(
            *(linears[name] for name in ("q", "k", "v", "o")),
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            rotary=family.rotary is not None,
            head_norms=head_norms is not None,
            cache="dense",
            scale=decoder.scale(model.config, index) if decoder.scale else None,
        )
        activation = family.activation(model.config)
        feed_forward = feed_forward_parts(linears["up"], linears["down"], linears.get("gate"), activation)
    window = family.window(model.config, index) if family.window else None
    return Layer(attention, feed_forward, norms["attention"], norms["feed_forward"], head_norms, window)
