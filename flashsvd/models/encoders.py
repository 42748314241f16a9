"""What families of encoders share: the linears of a block, its activation, and its two sublayers in turn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flashsvd.errors import ModelError
from flashsvd.models.family import with_methods
from flashsvd.models.shape import ModelShape, Slot

if TYPE_CHECKING:
    import torch
    from torch import nn

    from flashsvd.models.family import Attention, FeedForward

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def encoder_shape(
    model_type: str, *, hidden: int, width: int, heads: int, layers: int, positions: int, gated: bool = False
) -> ModelShape:
    """Equal blocks of q, k, v, o [hidden, hidden], up [width, hidden] and down [hidden, width].

    gated: a gate [width, hidden] before up.
    """
    slots = [Slot(name, hidden, hidden, heads=heads) for name in ("q", "k", "v")]
    slots.append(Slot("o", hidden, hidden))
    slots += [Slot(name, width, hidden) for name in (("gate", "up") if gated else ("up",))]
    slots.append(Slot("down", hidden, width))
    return ModelShape(
        family=model_type,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        max_positions=positions,
        layers=(tuple(slots),) * layers,
    )


def kernel_activation(name: str) -> str:
    """The kernels' name of an activation of transformers. Raises ModelError where they have none."""
    if name not in _ACTIVATIONS:
        known = ", ".join(sorted(_ACTIVATIONS))
        raise ModelError(f"activation {name!r} has no kernel: expected one of {known}")
    return _ACTIVATIONS[name]


def stream_blocks(blocks: Iterable[nn.Module], attention: Attention, feed_forward: FeedForward) -> None:
    """Makes every block's forward its attention, then its feed-forward, as `Family.stream` describes."""
    for index, block in enumerate(blocks):
        _stream_block(block, index, attention, feed_forward)


def _stream_block(block: nn.Module, index: int, attention: Attention, feed_forward: FeedForward) -> None:
    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *_: Any,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **__: Any,
    ) -> torch.Tensor:
        return feed_forward(index, attention(index, hidden_states, attention_mask, position_embeddings))

    with_methods(block, forward=forward)
