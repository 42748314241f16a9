"""DistilBERT (Sanh et al. 2019): BERT's block, half as many of them, under names of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashsvd.models.encoders import encoder_shape, kernel_activation, stream_blocks
from flashsvd.models.family import Family, Preset
from flashsvd.models.shape import ModelShape

if TYPE_CHECKING:
    from torch import nn

    from flashsvd.models.family import Attention, FeedForward

_PATHS = {
    "q": "attention.q_lin",
    "k": "attention.k_lin",
    "v": "attention.v_lin",
    "o": "attention.out_lin",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
}
_NORMS = {"attention": "sa_layer_norm", "feed_forward": "output_layer_norm"}


def _shape(config: Any) -> ModelShape:
    return encoder_shape(
        "distilbert",
        hidden=config.dim,
        width=config.hidden_dim,
        heads=config.n_heads,
        layers=config.n_layers,
        positions=config.max_position_embeddings,
    )


def _layers(base_model: nn.Module) -> list[nn.Module]:
    return list(base_model.get_submodule("transformer.layer").children())


def _stream(base_model: nn.Module, attention: Attention, feed_forward: FeedForward) -> None:
    stream_blocks(_layers(base_model), attention, feed_forward)


FAMILY = Family(
    model_type="distilbert",
    title="DistilBERT",
    shape=_shape,
    path=lambda layer, slot: f"transformer.layer.{layer}.{_PATHS[slot]}",
    layers=_layers,
    norm=lambda layer, sublayer: f"transformer.layer.{layer}.{_NORMS[sublayer]}",
    activation=lambda config: kernel_activation(config.activation),
    stream=_stream,
    presets={
        "distilbert-base": Preset(
            "DistilBERT-base, random weights",
            {
                "dim": 768,
                "n_layers": 6,
                "n_heads": 12,
                "hidden_dim": 3072,
                "max_position_embeddings": 512,
            },
        ),
    },
)
