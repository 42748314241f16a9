"""The flash engine: attention and feed-forward of every block run through the streaming kernels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from flashsvd.engines.absorb import Absorbed, absorb, absorb_values, can_absorb
from flashsvd.engines.attention import RankSpaceAttention, RebuiltAttention, RotaryAttention, Rotation
from flashsvd.engines.causal import CausalAttention, past_of
from flashsvd.engines.decoder import causal_attention, prepare_decoder
from flashsvd.engines.embeddings import stream_embeddings
from flashsvd.engines.feed_forward import (
    FeedForward,
    FeedForwardParts,
    PostNormFeedForward,
    feed_forward_parts,
)
from flashsvd.engines.modules import HeadLowRankLinear, LowRankLinear
from flashsvd.engines.parts import CACHES, CacheKind
from flashsvd.engines.sublayer import Norm, Sublayer, norm_of
from flashsvd.errors import InputError
from flashsvd.models.family import Family
from flashsvd.models.linears import lay_out_rows, linear_of
from flashsvd.models.shape import ModelShape

ATTENTION = "flashsvd"
"""Name under which transformers finds our mask: the padding of the keys, [B, S], never an S x S matrix."""


def stream(
    model: Any,
    family: Family,
    shape: ModelShape,
    backend: str | None = None,
    *,
    rebuild: bool = False,
    cache: CacheKind = "dense",
) -> None:
    """Makes a low-rank model stream, in place: the same parameters and names, other arithmetic.

    Every block gets two modules of its own, `flash_attention` and `flash_feed_forward`, which hold what is made of
    the parameters once (`flashsvd.engines.absorb`) and nothing that a checkpoint keeps. Blocks write their output
    over their input, except where somebody else still wants to see that (`_is_kept`).

    backend: of `flashsvd.kernels`; None takes Triton on CUDA and plain torch elsewhere. rebuild: q, k and v are
    rebuilt tile by tile, as in FlashSVD (arXiv 2508.01506), also where their factors could be absorbed. cache: of a
    decoder, what its caches hold (`flashsvd.engines.parts.causal_parts`).

    Raises:
        InputError: a family that is not streamed (`check_streams`), whole-matrix factors of an encoder with rotary
            positions, which no kernel here streams, or a cache that is none or does not go with the rest.
        ModelError: a model of the family that its blocks do not describe.
    """
    check_streams(family)
    assert family.stream is not None
    if cache not in CACHES:
        raise InputError(f"cache must be one of {', '.join(CACHES)}, got {cache!r}")
    if cache != "dense" and (rebuild or family.decoder is None):
        raise InputError(f"cache={cache!r} is for decoders, without rebuild=True; leave it out")
    from transformers.utils.output_capturing import _active_collector

    def collecting() -> bool:
        """Whether transformers is collecting hidden states for this call (output_hidden_states=True)."""
        collected = _active_collector.get()
        return collected is not None and "hidden_states" in collected

    blocks = family.layers(model.base_model)
    attach = functools.partial(_attach, model, family, shape, backend, rebuild, cache)
    attach()

    def attention(
        layer: int,
        hidden_states: torch.Tensor,
        key_mask: torch.Tensor | None,
        rotation: Rotation | None,
        cache: Any = None,
    ) -> torch.Tensor:
        index, x = layer, hidden_states
        if key_mask is not None and key_mask.dim() != 2:
            raise InputError(
                f"the flash engine takes a padding mask [batch, sequence], got {list(key_mask.shape)}; "
                "use the lowrank engine for other masks"
            )
        if not x.is_contiguous() or (index and _is_kept(blocks[index - 1])) or collecting():
            x = x.clone(memory_format=torch.contiguous_format)
        sublayer: Any = blocks[index].flash_attention
        if isinstance(sublayer, CausalAttention):
            return sublayer(x, key_mask, rotation, past_of(cache, index, x.shape[1]))
        if isinstance(blocks[index].flash_feed_forward, PostNormFeedForward):
            sublayer.open(x, key_mask, rotation)
            return x
        return sublayer(x, key_mask, rotation)

    def feed_forward(index: int, x: torch.Tensor) -> torch.Tensor:
        return blocks[index].flash_feed_forward(x)  # type: ignore[operator]

    family.stream(model.base_model, attention, feed_forward)
    # Weights that are read later make what was made of the old ones wrong.
    model.register_load_state_dict_post_hook(lambda *_: attach())
    if family.decoder is not None:
        prepare_decoder(model, family, backend)
        return
    stream_embeddings(model.base_model, backend)
    _register_attention()
    model.config._attn_implementation = ATTENTION


def check_streams(family: Family) -> None:
    """Raises InputError for a family that the flash engine does not run."""
    if family.stream is None:
        raise InputError(f"the flash engine does not run {family.title} yet: use lowrank")


def _attach(
    model: Any, family: Family, shape: ModelShape, backend: str | None, rebuild: bool, cache: CacheKind
) -> None:
    """Gives every block its two sublayers, made of the parameters as they are now."""
    activation = family.activation(model.config)
    for index, block in enumerate(family.layers(model.base_model)):
        linears = functools.partial(layer_linears, model.base_model, family, shape, index)
        norms = {
            name: norm_of(model.base_model.get_submodule(family.norm(index, name)))
            for name in ("attention", "feed_forward")
        }
        attention: Sublayer
        if family.decoder is not None:
            attention = causal_attention(
                model, family, shape, index, linears, norms["attention"], backend, cache
            )
        else:
            attention = _bidirectional(
                model.config, family, shape, index, linears(), norms["attention"], backend, rebuild
            )
        block.flash_attention = attention
        block.flash_feed_forward = _feed_forward(
            linears, activation, norms, family.pre_norm, backend, attention
        )


def layer_linears(
    base_model: nn.Module, family: Family, shape: ModelShape, layer: int
) -> dict[str, nn.Module]:
    """The linears of a layer by slot, dense weights in rows. Layers that share a right factor are given that of the
    first of them, which may lie in packed memory by now."""
    found = {}
    for slot in shape.layers[layer]:
        lay_out_rows(base_model, family, layer, slot.name)
        found[slot.name] = module = linear_of(base_model, family, shape, layer, slot.name)
        first = shape.group(layer, slot.name)[0]
        if first != layer and hasattr(module, "V"):
            module.V = linear_of(base_model, family, shape, first, slot.name).V
    return found


def _bidirectional(
    config: Any,
    family: Family,
    shape: ModelShape,
    index: int,
    linears: Mapping[str, nn.Module],
    norm: Norm | None,
    backend: str | None,
    rebuild: bool,
) -> Sublayer:
    """The attention sublayer of an encoder's block."""
    q, k, v, o = (linears[name] for name in ("q", "k", "v", "o"))
    if family.rotary is not None:
        return _rotary(config, family, shape, index, (q, k, v, o), norm, backend)
    if can_absorb((q, k, v)) and shape.heads == shape.kv_heads and not rebuild:
        absorbed = absorb(q, k, v, o, heads=shape.heads, head_dim=shape.head_dim)
        _share(absorbed, q, k, v)
        scale = 1.0 / math.sqrt(shape.head_dim)
        return RankSpaceAttention(absorbed, o, scale, norm, family.pre_norm, backend)
    return RebuiltAttention(
        (q, k, v, o), shape.heads, shape.kv_heads, shape.head_dim, norm, family.pre_norm, backend
    )


def _feed_forward(
    linears: Callable[[], Mapping[str, nn.Module]],
    activation: str,
    norms: Mapping[str, Norm | None],
    pre_norm: bool,
    backend: str | None,
    attention: Sublayer,
) -> FeedForward:
    def make() -> FeedForwardParts:
        found = linears()
        return feed_forward_parts(found["up"], found["down"], found.get("gate"), activation)

    norm, own = norms["feed_forward"], linears()
    factored = all(isinstance(own[name], LowRankLinear) for name in ("up", "down"))
    if factored and norm is not None and norms["attention"] is not None and not (pre_norm or "gate" in own):
        return PostNormFeedForward(make, norm, backend, attention)
    return FeedForward(make, norm, pre_norm, backend)


def _rotary(
    config: Any,
    family: Family,
    shape: ModelShape,
    index: int,
    modules: tuple[nn.Module, nn.Module, nn.Module, nn.Module],
    norm: Norm | None,
    backend: str | None,
) -> RotaryAttention:
    q, k, v, o = modules
    if not can_absorb((v,)):
        raise InputError(
            f"the flash engine has no kernel for {family.title} factored as whole matrices: factor it per head, or "
            "use the lowrank engine"
        )
    assert family.rotary is not None
    # Asked for its refusal alone: the angles come with every call.
    family.rotary(config, index)
    values = absorb_values(v, o, heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim)
    window = family.window(config, index) if family.window else None
    return RotaryAttention(
        q, k, o, values, shape.heads, shape.head_dim, window, norm, family.pre_norm, backend
    )


def _share(absorbed: Absorbed, q: nn.Module, k: nn.Module, v: nn.Module) -> None:
    """Makes first factors that went into the packed projection as they are views of it, so that they exist once."""
    widths = [absorbed.score.p_width, absorbed.score.p_width, absorbed.value.p_width]
    for module, rows in zip((q, k, v), absorbed.qkv.split(widths), strict=True):
        if isinstance(module, HeadLowRankLinear) and torch.equal(module.V, rows):
            module.V = nn.Parameter(rows, requires_grad=False)


def _is_kept(block: nn.Module) -> bool:
    """Whether a forward hook may still hold a block's output. Hooks that say `reads_at_once`, and those of
    transformers, which the caller answers for, do not count."""
    # Asked for every block of every call, nearly always of none.
    return bool(block._forward_hooks) and any(
        not getattr(hook, "reads_at_once", False) and hook.__module__ != "transformers.utils.output_capturing"
        for hook in block._forward_hooks.values()
    )


def _register_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _never_called)
    AttentionMaskInterface.register(ATTENTION, _key_padding)


def _never_called(*_: Any, **__: Any) -> Any:
    raise InputError(
        "this attention belongs to the flash engine: build the model with flashsvd.engines.build"
    )


def _key_padding(*_: Any, attention_mask: torch.Tensor | None = None, **__: Any) -> torch.Tensor | None:
    """What transformers calls to make a mask: [B, S] bool as it came, or None."""
    return attention_mask
