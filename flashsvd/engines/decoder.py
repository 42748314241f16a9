"""How a decoder of transformers is made to stream: its mask, its final norm, and the attention of each block."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from flashsvd.engines.causal import CausalAttention
from flashsvd.engines.parts import CacheKind, CausalParts, causal_parts
from flashsvd.engines.sublayer import Norm, norm_of
from flashsvd.errors import InputError
from flashsvd.kernels.attention.choice import Choice
from flashsvd.models.family import Family, with_methods
from flashsvd.models.shape import ModelShape

CAUSAL = "flashsvd_causal"
"""Name under which transformers finds the mask of decoders: the padding of the keys, [B, tokens so far], or None."""


def causal_attention(
    model: Any,
    family: Family,
    shape: ModelShape,
    layer: int,
    linears: Callable[[], Mapping[str, nn.Module]],
    norm: Norm | None,
    backend: str | None,
    cache: CacheKind,
) -> CausalAttention:
    """The attention sublayer of one block, made of the linears as they are when it is asked to."""
    assert family.decoder is not None
    config, decoder = model.config, family.decoder
    head_norms = None
    if decoder.head_norms is not None:
        q_norm, k_norm = (norm_of(model.base_model.get_submodule(path)) for path in decoder.head_norms(layer))
        assert q_norm is not None and k_norm is not None
        head_norms = (q_norm, k_norm)

    def make() -> CausalParts:
        found = linears()
        return causal_parts(
            found["q"],
            found["k"],
            found["v"],
            found["o"],
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            rotary=family.rotary is not None,
            head_norms=head_norms is not None,
            cache=cache,
            scale=decoder.scale(config, layer) if decoder.scale else None,
        )

    window = family.window(config, layer) if family.window else None
    return CausalAttention(make, window, head_norms, norm, backend, rotary=family.rotary is not None)


def prefill_words(model: Any, batch: int, seq: int, cached: bool = True) -> str:
    """What prefill of `batch` sequences of `seq` tokens does about the heads of q, k and v, and why, in one line.

    model: of any engine. cached: whether keys and values go to a cache, which keeps heads even where the cost model
    would rebuild them on chip. Predicted times are of the attention of all layers that are named, bytes of heads those
    of the layer with the most.
    """
    attentions = [module for module in model.modules() if isinstance(module, CausalAttention)]
    if not attentions:
        return f"heads as transformers makes them, attention {model.config._attn_implementation!r}"
    reasons: list[str] = []
    chosen: dict[tuple[str, str], list[Choice]] = {}
    for attention in attentions:
        found = attention.prefill(batch, seq)
        if isinstance(found, str):
            reasons.append(found)
            continue
        tail = ""
        if cached and found.how == "rebuild on chip":
            found, tail = dataclasses.replace(found, how="rebuild once"), ", but the cache keeps heads"
        chosen.setdefault((found.how, tail), []).append(found)
    lines = {reason: reasons.count(reason) for reason in reasons}
    for (_, tail), choices in chosen.items():
        lines[_all_layers(choices).words + tail] = len(choices)
    total = len(attentions)
    return "; ".join(
        f"{words} ({total if count == total else f'{count} of {total}'} layers)"
        for words, count in lines.items()
    )


def _all_layers(choices: Sequence[Choice]) -> Choice:
    """Layers that go one way, one after another: each frees its heads before the next."""
    return Choice(
        choices[0].how,
        sum(choice.on_chip_us for choice in choices),
        sum(choice.once_us for choice in choices),
        max(choice.heads_bytes for choice in choices),
    )


def prepare_decoder(model: Any, family: Family, backend: str | None) -> None:
    """What a decoder streams beside its blocks, once: masks of the padding alone, and the norm after the last block."""
    assert family.decoder is not None
    base = model.base_model
    _keep_embeddings(base)
    _stream_final_norm(base, family.decoder.final_norm, backend)
    _register_mask()
    model.config._attn_implementation = CAUSAL
    if getattr(model, "generation_config", None) is not None:
        # A static cache makes generate() compile the forward, of which torch would see nothing but graph breaks.
        model.generation_config.disable_compile = True


def _keep_embeddings(base: nn.Module) -> None:
    """Blocks write over the hidden states: embeddings that are the caller's are copied first."""
    names = list(inspect.signature(type(base).forward).parameters)[1:]

    def copied(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        given = dict(zip(names, args, strict=False)) | kwargs
        if isinstance(given.get("inputs_embeds"), torch.Tensor):
            return (), given | {"inputs_embeds": given["inputs_embeds"].clone()}
        return args, kwargs

    base.register_forward_pre_hook(copied, with_kwargs=True)


def _stream_final_norm(base: nn.Module, path: str | None, backend: str | None) -> None:
    if path is None:
        return
    owner_path, _, leaf = path.rpartition(".")
    module = getattr(base.get_submodule(owner_path), leaf)
    norm = None if module is None else norm_of(module)
    if norm is None:
        return

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        return norm(hidden_states, bias=None, out=None, backend=backend)

    with_methods(module, forward=forward)


def _register_mask() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(CAUSAL, _never_called)
    AttentionMaskInterface.register(CAUSAL, _key_padding)


def _never_called(*_: Any, **__: Any) -> Any:
    raise InputError(
        "this attention belongs to the flash engine: build the model with flashsvd.engines.build"
    )


def _key_padding(
    *_: Any,
    q_length: int,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **__: Any,
) -> torch.Tensor | None:
    """What transformers calls to make a mask: [B, tokens so far] bool as it came, None where nothing is padding."""
    if not allow_is_causal_skip and q_length > 1:
        raise InputError(
            "the flash engine takes sequences with padding, not several packed into one or masks of one's own: use the "
            "lowrank engine"
        )
    if attention_mask is None or attention_mask.dim() != 2:
        return attention_mask
    captured = attention_mask.is_cuda and torch.cuda.is_current_stream_capturing()
    return None if not captured and bool(attention_mask.all()) else attention_mask
