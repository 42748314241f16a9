"""The feed-forward sublayer of the flash engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from flashsvd.engines.parts import factors_of, joined, view_rows
from flashsvd.engines.sublayer import Norm, PackedSublayer, Sublayer, batch_slices, bias_of, least_tokens
from flashsvd.kernels.ffn import flash_svd_ffn, flash_svd_glu
from flashsvd.kernels.ffn_block import flash_svd_ffn_block

_LEAST_WIDTH = 2048
"""The wide dimension that LEAST_TOKENS is meant for."""


@dataclass(frozen=True)
class Branch:
    """A wide activation before its activation function: p·uᵀ + bias, where p is columns of x·firstᵀ, or x itself."""

    columns: slice | None
    """Of x·firstᵀ; None for a dense linear, whose u is its weight."""
    u: torch.Tensor
    """[D, R], R a multiple of 8, or [D, d]."""
    bias: torch.Tensor | None
    """[D]."""


@dataclass(frozen=True)
class FeedForwardParts:
    """down(activation(gate) · up), or down(activation(up)) without a gate.

    `first` [R, d] has the first factors of gate and up one under the other, None where both are dense. `down` is
    (W [d, D],) or its two factors (V [R2, D], U [d, R2]), R2 a multiple of 8; `down_bias` [d].
    """

    first: torch.Tensor | None
    gate: Branch | None
    up: Branch
    down: tuple[torch.Tensor, ...]
    down_bias: torch.Tensor | None
    activation: str


def feed_forward_parts(
    up: nn.Module, down: nn.Module, gate: nn.Module | None, activation: str
) -> FeedForwardParts:
    """Packs one layer's feed-forward; factors of the modules become views of what is packed."""
    modules = (up,) if gate is None else (gate, up)
    factors = [factors_of(module) for module in modules]
    firsts = [pair[0] for pair in factors if pair is not None]
    first = joined(firsts) if firsts else None
    branches, at = [], 0
    for module, pair in zip(modules, factors, strict=True):
        columns, u = None, module.get_parameter("weight").detach() if pair is None else pair[1]
        if pair is not None and first is not None:
            columns = slice(at, at + len(pair[0]))
            at = columns.stop
            view_rows(module, first[columns])
        branches.append(Branch(columns, u, bias_of(module)))
    return FeedForwardParts(
        first,
        branches[0] if gate is not None else None,
        branches[-1],
        factors_of(down) or (down.get_parameter("weight").detach(),),
        bias_of(down),
        activation,
    )


class FeedForward(PackedSublayer[FeedForwardParts]):
    """up, activation, down, streamed over the wide dimension (FFN v1); with a gate, activation(gate) times up."""

    def open(
        self,
        x: torch.Tensor,
        key_mask: torch.Tensor | None,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        # Rows are all alike here, whatever sequence they are of.
        super().open(x.view(-1, 1, x.shape[-1]), None, None)

    def cut(self, x: torch.Tensor) -> Sequence[slice]:
        # Beside a post-norm block's x only rank-space tensors are alive; a pre-norm one also holds norm(x).
        rows = x.shape[0]
        if not self.pre_norm:
            return batch_slices(rows, rows)
        least = least_tokens(x.device.type, len(self.parts.up.u), _LEAST_WIDTH)
        return batch_slices(rows, max(math.ceil(rows / 4), least))

    def inner(
        self,
        x: torch.Tensor,
        key_mask: torch.Tensor | None,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        parts, x = self.parts, x.flatten(0, 1)
        packed = x if parts.first is None else torch.mm(x, parts.first.T)
        p = x if parts.up.columns is None else packed[:, parts.up.columns]
        up, v2 = parts.up, parts.down[0]
        if parts.gate is None:
            # S takes the place of P, which nobody reads again, where they are of one size.
            place = packed if packed is not x and packed.shape[1] == v2.shape[0] else None
            return flash_svd_ffn(
                p, up.u, up.bias, v2, activation=parts.activation, out=place, backend=self.backend
            )
        gate = parts.gate
        gate_p = x if gate.columns is None else packed[:, gate.columns]
        return flash_svd_glu(
            gate_p,
            gate.u,
            gate.bias,
            p,
            up.u,
            up.bias,
            v2,
            activation=parts.activation,
            backend=self.backend,
        )

    def last(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        parts = self.parts
        return (parts.down[1] if len(parts.down) > 1 else None), parts.down_bias


class PostNormFeedForward(FeedForward):
    """A feed-forward between factors, with the norm of the attention before it and its own: one kernel where there is
    one (`flashsvd.kernels.ffn_block`). The attention leaves its bias and norm to it (`Sublayer.open`)."""

    def __init__(
        self, make: Callable[[], FeedForwardParts], norm: Norm, backend: str | None, attention: Sublayer
    ) -> None:
        super().__init__(make, norm, False, backend)
        # In a tuple, as it is a module of the block already.
        self._before = (attention,)

    def forward(
        self,
        x: torch.Tensor,
        key_mask: torch.Tensor | None = None,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        parts, before = self.parts, self._before[0]
        assert self.norm is not None and before.norm is not None and parts.first is not None
        v2, u2 = parts.down
        return flash_svd_ffn_block(
            x,
            parts.first,
            parts.up.u,
            parts.up.bias,
            v2,
            u2,
            parts.down_bias,
            self.norm.of_block(None),
            entry=before.norm.of_block(before.last()[1]),
            activation=parts.activation,
            backend=self.backend,
        )
