"""GPT-2 (Radford et al. 2019): learned positions, q, k and v in one layer, weights stored the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashsvd.errors import ModelError
from flashsvd.models.encoders import kernel_activation
from flashsvd.models.family import Decoder, Family, Preset, with_methods
from flashsvd.models.llama_like import decoder_shape
from flashsvd.models.shape import ModelShape

if TYPE_CHECKING:
    import torch
    from torch import nn

    from flashsvd.models.family import Attention, FeedForward

_PATHS = {
    "q": "attn.c_attn.q",
    "k": "attn.c_attn.k",
    "v": "attn.c_attn.v",
    "o": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
_NORMS = {"attention": "ln_1", "feed_forward": "ln_2"}


def _shape(config: Any) -> ModelShape:
    if getattr(config, "add_cross_attention", False):
        raise ModelError("this GPT-2 has cross attention: only decoders of text alone are supported")
    return decoder_shape(
        "gpt2",
        hidden=config.n_embd,
        width=getattr(config, "n_inner", None) or 4 * config.n_embd,
        heads=config.n_head,
        kv_heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        layers=config.n_layer,
        positions=config.n_positions,
        gated=False,
    )


def _scale(config: Any, layer: int) -> float:
    scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


def _layers(base_model: nn.Module) -> list[nn.Module]:
    return list(base_model.get_submodule("h").children())


def _stream(base_model: nn.Module, attention: Attention, feed_forward: FeedForward) -> None:
    for index, block in enumerate(_layers(base_model)):
        _stream_block(block, index, attention, feed_forward)


def _stream_block(block: nn.Module, index: int, attention: Attention, feed_forward: FeedForward) -> None:
    def forward(
        self: Any, hidden_states: torch.Tensor, cache: Any = None, mask: Any = None, *_: Any, **given: Any
    ) -> torch.Tensor:
        kept = given.get("past_key_values") if cache is None else cache
        mask = given.get("attention_mask") if mask is None else mask
        return feed_forward(index, attention(index, hidden_states, mask, None, kept))

    with_methods(block, forward=forward)


FAMILY = Family(
    model_type="gpt2",
    title="GPT-2",
    shape=_shape,
    path=lambda layer, slot: f"h.{layer}.{_PATHS[slot]}",
    layers=_layers,
    norm=lambda layer, sublayer: f"h.{layer}.{_NORMS[sublayer]}",
    activation=lambda config: kernel_activation(config.activation_function),
    stream=_stream,
    task="language",
    fused=(("q", "k", "v"),),
    transposed=True,
    pre_norm=True,
    decoder=Decoder("wte", "ln_f", ("wpe", 0), scale=_scale),
    presets={
        "gpt2": Preset(
            "GPT-2, random weights",
            {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257},
        ),
    },
)
