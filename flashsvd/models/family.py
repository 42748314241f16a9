"""What a model family must say of itself; the families are the files of `flashsvd.models.families`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from flashsvd.errors import ModelError
from flashsvd.models.shape import ModelShape

if TYPE_CHECKING:
    import torch
    from torch import nn

    Attend = Callable[[nn.Module, nn.Module, nn.Module, torch.Tensor, torch.Tensor | None], torch.Tensor]
    FeedForward = Callable[[nn.Module, nn.Module, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Preset:
    """A published architecture with random weights: for memory and speed, never for accuracy."""

    title: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """One architecture of transformers, as the engines see it.

    `shape(config)` describes the linears; `path(layer, slot)` is a linear's module path under the base model;
    `layers(base_model)` are the blocks; `activation(config)` names the feed-forward activation as the kernels
    know it; `stream(base_model, attend, feed_forward)` makes every block run its attention and its feed-forward
    through the two functions it is given, leaving names and parameters as they are.
    """

    model_type: str
    title: str
    shape: Callable[[Any], ModelShape]
    path: Callable[[int, str], str]
    layers: Callable[[nn.Module], list[nn.Module]]
    activation: Callable[[Any], str]
    stream: Callable[[nn.Module, Attend, FeedForward], None]
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
            f"to add it, write flashsvd/models/families/{model_type}.py"
        )
    return families()[model_type]


def with_methods(module: nn.Module, **methods: Callable[..., Any]) -> None:
    """Gives one module new methods and nothing else: parameters, names and hooks stay."""
    original = type(module)
    module.__class__ = type(f"Streamed{original.__name__}", (original,), methods)
