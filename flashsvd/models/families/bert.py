"""BERT (Devlin et al. 2018): post-norm encoder, learned positions, biases everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashsvd.errors import ModelError
from flashsvd.models.family import Family, Preset, with_methods
from flashsvd.models.shape import ModelShape, Slot

if TYPE_CHECKING:
    import torch
    from torch import nn

    from flashsvd.models.family import Attend, FeedForward

_PATHS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def _shape(config: Any) -> ModelShape:
    hidden, width, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    layer = (
        Slot("q", hidden, hidden, heads=heads),
        Slot("k", hidden, hidden, heads=heads),
        Slot("v", hidden, hidden, heads=heads),
        Slot("o", hidden, hidden),
        Slot("up", width, hidden),
        Slot("down", hidden, width),
    )
    return ModelShape(
        family="bert",
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        max_positions=config.max_position_embeddings,
        layers=(layer,) * config.num_hidden_layers,
    )


def _path(layer: int, slot: str) -> str:
    return f"encoder.layer.{layer}.{_PATHS[slot]}"


def _layers(base_model: nn.Module) -> list[nn.Module]:
    return list(base_model.get_submodule("encoder.layer").children())


def _activation(config: Any) -> str:
    if config.hidden_act not in _ACTIVATIONS:
        known = ", ".join(sorted(_ACTIVATIONS))
        raise ModelError(f"activation {config.hidden_act!r} has no kernel: expected one of {known}")
    return _ACTIVATIONS[config.hidden_act]


def _stream(base_model: nn.Module, attend: Attend, feed_forward: FeedForward) -> None:
    def attention(
        self: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        projections = self.self
        heads = attend(projections.query, projections.key, projections.value, hidden_states, attention_mask)
        mixed = self.output.dense(heads)
        # At this point heads is dead weight, and the residual fits in mixed: one hidden state less at the peak.
        del heads
        return self.output.LayerNorm(mixed.add_(hidden_states)), None

    def feed_forward_chunk(self: Any, attention_output: torch.Tensor) -> torch.Tensor:
        mixed = feed_forward(self.intermediate.dense, self.output.dense, attention_output)
        return self.output.LayerNorm(mixed.add_(attention_output))

    for layer in _layers(base_model):
        with_methods(layer.get_submodule("attention"), forward=attention)
        with_methods(layer, feed_forward_chunk=feed_forward_chunk)


FAMILY = Family(
    model_type="bert",
    title="BERT",
    shape=_shape,
    path=_path,
    layers=_layers,
    activation=_activation,
    stream=_stream,
    presets={
        "bert-base": Preset(
            "BERT-base, random weights",
            {
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "max_position_embeddings": 512,
            },
        ),
        "bert-large": Preset(
            "BERT-large, random weights",
            {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "max_position_embeddings": 512,
            },
        ),
    },
)
