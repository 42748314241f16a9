"""The decoders that keep Llama's block and its module names: pre-norm, rotary positions, a gated feed-forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flashsvd.errors import ModelError
from flashsvd.models.encoders import kernel_activation
from flashsvd.models.family import Decoder, Family, Preset, with_methods
from flashsvd.models.shape import ModelShape, Slot

if TYPE_CHECKING:
    import torch
    from torch import nn

    from flashsvd.models.family import Attention, FeedForward

_PATHS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_NORMS = {"attention": "input_layernorm", "feed_forward": "post_attention_layernorm"}


def decoder_shape(
    model_type: str,
    *,
    hidden: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    layers: int,
    positions: int,
    gated: bool,
) -> ModelShape:
    """Equal blocks of q [heads·head_dim, hidden], k and v [kv_heads·head_dim, hidden], o the other way round, a gate
    [width, hidden] where `gated`, up [width, hidden] and down [hidden, width].

    Raises ModelError where the query heads cannot share the key heads evenly.
    """
    if heads % kv_heads:
        raise ModelError(f"{heads} query heads cannot share {kv_heads} key heads evenly: check config.json")
    slots = [Slot("q", heads * head_dim, hidden, heads=heads)]
    slots += [Slot(name, kv_heads * head_dim, hidden, heads=kv_heads) for name in ("k", "v")]
    slots.append(Slot("o", hidden, heads * head_dim))
    slots += [Slot(name, width, hidden) for name in (("gate", "up") if gated else ("up",))]
    slots.append(Slot("down", hidden, width))
    return ModelShape(
        family=model_type,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=positions,
        layers=(tuple(slots),) * layers,
    )


def llama_like(
    model_type: str,
    title: str,
    presets: Mapping[str, Preset],
    window: Callable[[Any, int], int | None] | None = None,
    head_norms: Callable[[int], tuple[str, str]] | None = None,
) -> Family:
    """A family whose blocks are Llama's; `window(config, layer)` as in `Family`, `head_norms` as in `Decoder`."""

    def shape(config: Any) -> ModelShape:
        heads = config.num_attention_heads
        return decoder_shape(
            model_type,
            hidden=config.hidden_size,
            width=config.intermediate_size,
            heads=heads,
            kv_heads=config.num_key_value_heads or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            layers=config.num_hidden_layers,
            positions=config.max_position_embeddings,
            gated=True,
        )

    return Family(
        model_type=model_type,
        title=title,
        shape=shape,
        path=lambda layer, slot: f"layers.{layer}.{_PATHS[slot]}",
        layers=_layers,
        norm=lambda layer, sublayer: f"layers.{layer}.{_NORMS[sublayer]}",
        activation=lambda config: (
            config.hidden_act if config.hidden_act == "silu" else kernel_activation(config.hidden_act)
        ),
        stream=_stream,
        task="language",
        pre_norm=True,
        rotary=_rotary,
        window=window,
        decoder=Decoder("embed_tokens", "norm", head_norms=head_norms),
        presets=presets,
    )


def window_by_layer(config: Any, layer: int) -> int | None:
    """The window of a family in which only some layers have one."""
    # transformers counts the query itself.
    return config.sliding_window - 1 if config.layer_types[layer] == "sliding_attention" else None


def _layers(base_model: nn.Module) -> list[nn.Module]:
    return list(base_model.get_submodule("layers").children())


def _rotary(config: Any, layer: int) -> float:
    return float(config.rope_parameters["rope_theta"])


def _stream(base_model: nn.Module, attention: Attention, feed_forward: FeedForward) -> None:
    for index, block in enumerate(_layers(base_model)):
        stream_block(block, index, attention, feed_forward)


def stream_block(block: nn.Module, index: int, attention: Attention, feed_forward: FeedForward) -> None:
    """Makes a causal block's forward its attention, then its feed-forward, for blocks that are called by keywords."""

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        **__: Any,
    ) -> torch.Tensor:
        # transformers 5.17 passes it by the other name.
        kept = past_key_values if cache is None else cache
        return feed_forward(index, attention(index, hidden_states, attention_mask, position_embeddings, kept))

    with_methods(block, forward=forward)
