"""What a model family must say of itself; the families are the files of `flashsvd.models.families`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from flashsvd.errors import ModelError
from flashsvd.models.shape import ModelShape

if TYPE_CHECKING:
    import torch
    from torch import nn

    Rotation = tuple[torch.Tensor, torch.Tensor]
    FeedForward = Callable[[int, torch.Tensor], torch.Tensor]

    class Attention(Protocol):
        """The attention sublayer of a layer, as `Family.stream` describes."""

        def __call__(
            self,
            layer: int,
            hidden_states: torch.Tensor,
            key_mask: torch.Tensor | None,
            rotation: Rotation | None,
            cache: Any = None,
        ) -> torch.Tensor: ...


Task = Literal["classification", "language"]
"""What a preset of a family is given a head for: a label of the whole sequence, or the next token."""


@dataclass(frozen=True)
class Preset:
    """A published architecture with random weights: for memory and speed, never for accuracy."""

    title: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Decoder:
    """What a causal family says beside its blocks, for the flash engine and the runtime that decodes.

    Paths of modules are under the base model. `embedding` is the table of tokens and `final_norm` what follows the
    last block, None for nothing. `positions` is the table of learned positions and what is added to a token's place
    to find its row; None where positions are rotary. `head_norms(layer)` are RMS norms over the head dim that q and
    k go through before they are turned.
    """

    embedding: str
    final_norm: str | None
    positions: tuple[str, int] | None = None
    head_norms: Callable[[int], tuple[str, str]] | None = None
    scale: Callable[[Any, int], float] | None = None


@dataclass(frozen=True)
class Family:
    """One architecture of transformers, as the engines see it.

    `shape(config)` describes the linears; `path(layer, slot)` is a linear's module path under the base model, and
    `norm(layer, sublayer)` that of the norm of its "attention" or "feed_forward"; `layers(base_model)` are the
    blocks; `activation(config)` names the feed-forward activation as the kernels know it.

    `stream(base_model, attention, feed_forward)` makes every block run its two sublayers through the functions it is
    given, leaving names and parameters as they are. Both take the layer's index and the hidden states [B, S, d] and
    return the hidden states after the whole sublayer, residual and norm included; they may do so in the place of the
    ones they were given. Attention also takes the padding mask of the keys, bool [B, S] or None, the cosines and sines
    [B or 1, S, head_dim] of rotary positions or None, and the cache of keys and values that transformers hands to a
    causal block or None; where there is one, the mask covers what it holds, too.

    The rest has defaults:

    `stream` is None where the flash engine does not run the family. `task` decides the head of presets; a family of
    task "language" is causal: a query sees no later key.
    `fused` are the groups of slots that the dense model computes with one linear, each in the order of its rows; the
    path of such a slot is the linear's and the slot's name, `attn.Wqkv.q` (see `flashsvd.models.linears`).
    `transposed` says that the linears are Conv1D modules of transformers, whose weights are [in, out].
    `pre_norm` says that a sublayer is x + f(norm(x)) and not norm(x + f(x)); the norm may be an Identity.
    `rotary(config, layer)` is the base theta of rotary positions, pairs (i, i + head_dim / 2) turned by
    position · theta^(-2i / head_dim), or by what a config's rope type makes of it: the angles that come with a call are
    the model's own. None where positions are part of the embeddings. `window(config, layer)` is
    how far a query sees to either side, both ends included: keys with |query - key| <= window, or every key for None.
    In a family with a slot "gate" the feed-forward is down(activation(gate(x)) * up(x)).
    `decoder` is there for a family of task "language" that the flash engine and the runtime run.
    """

    model_type: str
    title: str
    shape: Callable[[Any], ModelShape]
    path: Callable[[int, str], str]
    layers: Callable[[nn.Module], list[nn.Module]]
    norm: Callable[[int, str], str]
    activation: Callable[[Any], str]
    stream: Callable[[nn.Module, Attention, FeedForward], None] | None = None
    task: Task = "classification"
    fused: tuple[tuple[str, ...], ...] = ()
    transposed: bool = False
    pre_norm: bool = False
    rotary: Callable[[Any, int], float] | None = None
    window: Callable[[Any, int], int | None] | None = None
    decoder: Decoder | None = None
    presets: Mapping[str, Preset] = field(default_factory=lambda: MappingProxyType({}))


@functools.cache
def families() -> Mapping[str, Family]:
    """Every family by its model_type."""
    from flashsvd.models import families as package

    found = {}
    for entry in pkgutil.iter_modules(package.__path__):
        family = importlib.import_module(f"{package.__name__}.{entry.name}").FAMILY
        found[family.model_type] = family
    return MappingProxyType(found)


def family_of(model_type: str) -> Family:
    """The family of a model_type.

    Raises:
        ModelError: none is written for it; the message lists those that are.
    """
    if model_type not in families():
        known = ", ".join(sorted(families()))
        raise ModelError(
            f"architecture {model_type!r} is not supported yet: expected one of {known}; "
            f"to add it, write flashsvd/models/families/{model_type.replace('-', '_')}.py"
        )
    return families()[model_type]


def with_methods(module: nn.Module, **methods: Callable[..., Any]) -> None:
    """Gives one module new methods and nothing else: parameters, names and hooks stay."""
    original = type(module)
    module.__class__ = type(f"Streamed{original.__name__}", (original,), methods)
