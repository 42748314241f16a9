"""ModernBERT (Warner et al. 2024): pre-norm, rotary positions, local attention in most layers, gated feed-forward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashsvd.errors import ModelError
from flashsvd.models.encoders import encoder_shape, kernel_activation, stream_blocks
from flashsvd.models.family import Family, Preset
from flashsvd.models.shape import ModelShape

if TYPE_CHECKING:
    from torch import nn

    from flashsvd.models.family import Attention, FeedForward

_PATHS = {
    "q": "attn.Wqkv.q",
    "k": "attn.Wqkv.k",
    "v": "attn.Wqkv.v",
    "o": "attn.Wo",
    "gate": "mlp.Wi.gate",
    "up": "mlp.Wi.up",
    "down": "mlp.Wo",
}
_NORMS = {"attention": "attn_norm", "feed_forward": "mlp_norm"}
_PUBLISHED = {"vocab_size": 50368, "max_position_embeddings": 8192, "local_attention": 128}


def _shape(config: Any) -> ModelShape:
    return encoder_shape(
        "modernbert",
        hidden=config.hidden_size,
        width=config.intermediate_size,
        heads=config.num_attention_heads,
        layers=config.num_hidden_layers,
        positions=config.max_position_embeddings,
        gated=True,
    )


def _layers(base_model: nn.Module) -> list[nn.Module]:
    return list(base_model.get_submodule("layers").children())


def _rotary(config: Any, layer: int) -> float:
    rope = config.rope_parameters[config.layer_types[layer]]
    if rope["rope_type"] != "default":
        raise ModelError(
            f"rotary positions of type {rope['rope_type']!r} have no kernel: expected 'default'; "
            "use the lowrank engine"
        )
    return float(rope["rope_theta"])


def _window(config: Any, layer: int) -> int | None:
    return config.sliding_window if config.layer_types[layer] == "sliding_attention" else None


def _stream(base_model: nn.Module, attention: Attention, feed_forward: FeedForward) -> None:
    stream_blocks(_layers(base_model), attention, feed_forward)


FAMILY = Family(
    model_type="modernbert",
    title="ModernBERT",
    shape=_shape,
    path=lambda layer, slot: f"layers.{layer}.{_PATHS[slot]}",
    layers=_layers,
    norm=lambda layer, sublayer: f"layers.{layer}.{_NORMS[sublayer]}",
    activation=lambda config: kernel_activation(config.hidden_activation),
    stream=_stream,
    fused=(("q", "k", "v"), ("gate", "up")),
    pre_norm=True,
    rotary=_rotary,
    window=_window,
    presets={
        "modernbert-base": Preset(
            "ModernBERT-base, random weights",
            {
                **_PUBLISHED,
                "hidden_size": 768,
                "num_hidden_layers": 22,
                "num_attention_heads": 12,
                "intermediate_size": 1152,
            },
        ),
        "modernbert-large": Preset(
            "ModernBERT-large, random weights",
            {
                **_PUBLISHED,
                "hidden_size": 1024,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "intermediate_size": 2624,
            },
        ),
    },
)
