"""The encoders that keep BERT's block and its module names: post-norm, learned positions, biases everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flashsvd.errors import ModelError
from flashsvd.models.encoders import encoder_shape, kernel_activation, stream_blocks
from flashsvd.models.family import Family, Preset
from flashsvd.models.shape import ModelShape

if TYPE_CHECKING:
    from torch import nn

    from flashsvd.models.family import Attention, FeedForward

_PATHS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_NORMS = {"attention": "attention.output.LayerNorm", "feed_forward": "output.LayerNorm"}


def all_positions(config: Any) -> int:
    """Every row of the position table is a position."""
    positions: int = config.max_position_embeddings
    return positions


def positions_after_padding(config: Any) -> int:
    """RoBERTa counts positions from the padding token's id plus one: the rows up to there are never read."""
    positions: int = config.max_position_embeddings - config.pad_token_id - 1
    return positions


def bert_like(
    model_type: str,
    title: str,
    presets: Mapping[str, Preset],
    positions: Callable[[Any], int] = all_positions,
) -> Family:
    """A family whose blocks are BERT's; `positions(config)` is the longest sequence it takes.

    Its `shape` raises ModelError for decoders, cross attention and relative positions.
    """

    def shape(config: Any) -> ModelShape:
        _check(config, title)
        return encoder_shape(
            model_type,
            hidden=config.hidden_size,
            width=config.intermediate_size,
            heads=config.num_attention_heads,
            layers=config.num_hidden_layers,
            positions=positions(config),
        )

    return Family(
        model_type=model_type,
        title=title,
        shape=shape,
        path=lambda layer, slot: f"encoder.layer.{layer}.{_PATHS[slot]}",
        layers=_layers,
        norm=lambda layer, sublayer: f"encoder.layer.{layer}.{_NORMS[sublayer]}",
        activation=lambda config: kernel_activation(config.hidden_act),
        stream=_stream,
        presets=presets,
    )


def _check(config: Any, title: str) -> None:
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise ModelError(
            f"this {title} is a decoder (is_decoder or add_cross_attention): only encoders are supported"
        )
    # transformers 5 ignores the setting and would silently run the model with absolute positions.
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    if kind != "absolute":
        raise ModelError(f"this {title} has {kind!r} positions: only 'absolute' ones are supported")


def _layers(base_model: nn.Module) -> list[nn.Module]:
    return list(base_model.get_submodule("encoder.layer").children())


def _stream(base_model: nn.Module, attention: Attention, feed_forward: FeedForward) -> None:
    stream_blocks(_layers(base_model), attention, feed_forward)
