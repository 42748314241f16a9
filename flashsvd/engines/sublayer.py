"""A sublayer of an encoder block as the flash engine runs it: written over the hidden states it was given.

Of a hidden state x [B, S, d] nothing else of that size is alive: attention runs over slices of the batch (or, where
there are too few sequences, over groups of heads), the residual is added in place by the product that makes it, and
the norm is taken in place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, Literal, Self, TypeVar

import torch
from torch import nn

from flashsvd.engines.modules import LowRankLinear
from flashsvd.errors import InputError
from flashsvd.kernels.ffn_block import BlockNorm
from flashsvd.kernels.norm import fused_norm

Parts = TypeVar("Parts")

SLICE_SHARE = 1.25
"""How many hidden states the tensors of one slice may take together."""
LEAST_TOKENS = {"cuda": 2048, "cpu": 256}
"""Fewer tokens than this are not sliced: on a GPU the launches would cost more than the memory is worth."""


def least_tokens(device: str, width: int, meant: int) -> int:
    """LEAST_TOKENS where what is made of a token is `width` columns wide: fewer above the `meant` ones, which keep a
    GPU as busy.

    >>> least_tokens("cuda", 768, 768), least_tokens("cuda", 4096, 768)
    (2048, 384)
    """
    tokens = LEAST_TOKENS.get(device, LEAST_TOKENS["cuda"])
    return max(1, min(tokens, tokens * meant // width))


@dataclass(frozen=True)
class Slices:
    """How one attention sublayer is cut: sequences per slice, and heads per group within it."""

    sequences: int
    heads: int


def plan_slices(
    batch: int, seq: int, width: int, hidden: int, heads: int, device: str, least: int | None = None
) -> Slices:
    """Slices whose tensors, `width` columns in all, take at most SLICE_SHARE hidden states of `hidden` columns, of
    `least` tokens or more (LEAST_TOKENS unless given).

    >>> plan_slices(32, 512, 1680, 768, 12, "cuda")
    Slices(sequences=16, heads=12)
    >>> plan_slices(1, 16384, 1680, 768, 12, "cuda")
    Slices(sequences=1, heads=6)
    >>> plan_slices(1, 512, 1680, 768, 12, "cuda")
    Slices(sequences=1, heads=12)
    """
    least = LEAST_TOKENS.get(device, LEAST_TOKENS["cuda"]) if least is None else least
    return _planned(batch, seq, math.ceil(width / (hidden * SLICE_SHARE)), heads, least)


@functools.lru_cache(maxsize=1024)
def _planned(batch: int, seq: int, wanted: int, heads: int, least: int) -> Slices:
    wanted = max(1, min(wanted, batch * seq // least))
    sequences = math.ceil(batch / min(wanted, batch))
    groups = math.ceil(wanted * sequences / batch)
    return Slices(sequences, math.ceil(heads / min(groups, heads)))


@dataclass(frozen=True)
class Norm:
    """A LayerNorm or RMSNorm of the model, run over or beside what it reads."""

    module: nn.Module
    kind: Literal["layer", "rms"]
    eps: float

    def __call__(
        self, x: torch.Tensor, *, bias: torch.Tensor | None, out: torch.Tensor | None, backend: str | None
    ) -> torch.Tensor:
        """norm(x + bias), written to out (which may be x) or to a new tensor."""
        shift = bias_of(self.module)
        weight: Any = self.module.weight
        return fused_norm(x, weight, shift, self.eps, bias=bias, kind=self.kind, out=out, backend=backend)

    def of_block(self, bias: torch.Tensor | None) -> BlockNorm:
        """The same norm(x + bias) for the kernel that takes a feed-forward with the norms around it."""
        weight: Any = self.module.weight
        return BlockNorm(weight, bias_of(self.module), self.eps, bias, self.kind)


_RMS = frozenset(
    f"transformers.models.{family}.modeling_{family}.{name}RMSNorm"
    for family, name in (("llama", "Llama"), ("mistral", "Mistral"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3"))
)
"""Modules that are x / sqrt(mean(x²) + eps)·weight: others of the name add 1 to the weight, or more."""


def norm_of(module: nn.Module) -> Norm | None:
    """A norm as the sublayers run it, None for the identity. Raises InputError where no kernel knows it."""
    if isinstance(module, nn.Identity):
        return None
    if isinstance(module, nn.LayerNorm):
        return Norm(module, "layer", module.eps)
    kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    if any(kind in _RMS for kind in kinds):
        eps: Any = module.variance_epsilon
        return Norm(module, "rms", float(eps))
    raise InputError(f"the flash engine has no kernel for the norm {type(module).__name__}")


class Sublayer(nn.Module):
    """x + f(x), normed before or after, in the place of x; `norm` None is the identity.

    Subclasses give `cut`, the pieces of x that are done one after another, `inner`, what f's last product is
    applied to, and `last`, that product.
    """

    def __init__(self, norm: Norm | None, pre_norm: bool, backend: str | None) -> None:
        super().__init__()
        self.norm = norm
        self.pre_norm = pre_norm
        self.backend = backend

    def forward(
        self,
        x: torch.Tensor,
        key_mask: torch.Tensor | None = None,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """x [B, S, d], contiguous, is written over and returned; key_mask [B, S] bool or None; rotation: cosines and
        sines [B or 1, S, h] or None."""
        self.open(x, key_mask, rotation)
        bias = self.last()[1]
        if self.norm is not None and not self.pre_norm:
            # Once over all pieces: a launch fewer for each.
            self.norm(x, bias=bias, out=x, backend=self.backend)
        elif bias is not None:
            x.add_(bias)
        return x

    def open(
        self,
        x: torch.Tensor,
        key_mask: torch.Tensor | None,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        """`forward` but for what comes after the last product: its bias, and the norm of a post-norm sublayer."""
        pieces = self.cut(x)
        weight = self.last()[0]
        for piece in pieces:
            part, mask, turns = x, key_mask, rotation
            if len(pieces) > 1:
                part = x[piece]
                mask = None if key_mask is None else key_mask[piece]
                if rotation is not None and len(rotation[0]) > 1:
                    turns = (rotation[0][piece], rotation[1][piece])
            source = part
            if self.pre_norm and self.norm is not None:
                source = self.norm(part, bias=None, out=None, backend=self.backend)
            inner = self.inner(source, mask, turns)
            rows = part.view(-1, part.shape[-1])
            if weight is None:
                rows.add_(inner)
            else:
                rows.addmm_(inner, weight.T)
            # Before the next piece makes its own.
            del inner, source

    def cut(self, x: torch.Tensor) -> Sequence[slice]:
        """Slices of the batch, all of it together."""
        raise NotImplementedError

    def inner(
        self,
        x: torch.Tensor,
        key_mask: torch.Tensor | None,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """x [b, S, d] -> [b·S, k]."""
        raise NotImplementedError

    def last(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Weight [d, k] of f's last product, None for the identity, and the bias [d] or None added after it."""
        raise NotImplementedError


class PackedSublayer(Sublayer, Generic[Parts]):
    """A sublayer that computes with `parts`, a dataclass of tensors that `make` makes of the modules' parameters."""

    parts: Parts

    def __init__(
        self, make: Callable[[], Parts], norm: Norm | None, pre_norm: bool, backend: str | None
    ) -> None:
        super().__init__(norm, pre_norm, backend)
        self._make = make
        self.refresh()

    def refresh(self) -> None:
        """Makes `parts` of the parameters as they are now."""
        self.parts = self._make()
        self._buffers.clear()
        for number, tensor in enumerate(tensors_of(self.parts)):
            # So that they are counted; not persistent, as the parameters are what a checkpoint holds.
            self.register_buffer(f"part_{number}", tensor, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Views of parameters that were moved just before: moved on their own they would be a second copy.
        self.refresh()
        return self


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in a dataclass, and in those and the tuples in it."""
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors_of(item)


@functools.lru_cache(maxsize=1024)
def batch_slices(batch: int, step: int) -> tuple[slice, ...]:
    """0 to batch in slices of step."""
    return tuple(slice(start, start + step) for start in range(0, batch, max(1, step)))


def bias_of(module: nn.Module) -> torch.Tensor | None:
    """A module's bias, where it has one."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


def first_of(module: nn.Module) -> torch.Tensor:
    """What a linear multiplies its input by first: V [k, in] of factors, or the weight."""
    return module.V if isinstance(module, LowRankLinear) else module.get_parameter("weight")


def second_of(module: nn.Module) -> torch.Tensor:
    """What a linear multiplies last: U [out, k] of factors, or the weight."""
    return module.U if isinstance(module, LowRankLinear) else module.get_parameter("weight")
