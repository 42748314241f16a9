"""The feed-forward sublayer of the flash engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flashsvd.engines.absorb import aligned
from flashsvd.engines.modules import LowRankLinear
from flashsvd.engines.sublayer import Norm, Sublayer, batch_slices, bias_of, first_of, second_of
from flashsvd.kernels.ffn import flash_svd_ffn, flash_svd_glu
from flashsvd.kernels.ffn_block import flash_svd_ffn_block


class FeedForward(Sublayer):
    """up, activation, down, streamed over the wide dimension (FFN v1); with a gate, activation(gate) times up."""

    gate_u: torch.Tensor | None
    gate_v: torch.Tensor | None
    up_u: torch.Tensor | None
    up_v: torch.Tensor | None
    down_u: torch.Tensor | None
    down_v: torch.Tensor | None

    def __init__(
        self,
        up: nn.Module,
        down: nn.Module,
        gate: nn.Module | None,
        activation: str,
        norm: Norm | None,
        pre_norm: bool,
        backend: str | None,
    ) -> None:
        super().__init__(norm, pre_norm, backend)
        self.activation = activation
        self._linears = (up, down, gate)
        for name, module in (("up", up), ("down", down), ("gate", gate)):
            u, v = _aligned_factors(module)
            self.register_buffer(f"{name}_u", u, persistent=False)
            self.register_buffer(f"{name}_v", v, persistent=False)

    def cut(self, x: torch.Tensor) -> Sequence[slice]:
        # Beside a post-norm block's x only rank-space tensors are alive; a pre-norm one also holds norm(x).
        return batch_slices(x.shape[0], math.ceil(x.shape[0] / 4) if self.pre_norm else x.shape[0])

    def inner(
        self,
        x: torch.Tensor,
        key_mask: torch.Tensor | None,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        up, down, gate = self._linears
        # self.up_u is a call in Python, 1 us on the H200's host.
        held: Any = self._buffers
        x = x.flatten(0, 1)
        v2 = first_of(down) if held["down_v"] is None else held["down_v"]
        branch = _branch(up, held["up_u"], held["up_v"], x)
        if gate is None:
            p = branch[0]
            # S takes the place of P, which nobody reads again, where they are of one size.
            place = p if p is not x and p.shape[1] == v2.shape[0] else None
            return flash_svd_ffn(*branch, v2, activation=self.activation, out=place, backend=self.backend)
        gated = _branch(gate, held["gate_u"], held["gate_v"], x)
        return flash_svd_glu(*gated, *branch, v2, activation=self.activation, backend=self.backend)

    def last(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        down = self._linears[1]
        if not isinstance(down, LowRankLinear):
            return None, bias_of(down)
        padded = self._buffers["down_u"]
        return (down.U if padded is None else padded), bias_of(down)


class PostNormFeedForward(FeedForward):
    """A feed-forward between factors, with the norm of the attention before it and its own: one kernel where there is
    one (`flashsvd.kernels.ffn_block`). The attention leaves its bias and norm to it (`Sublayer.open`)."""

    def __init__(
        self,
        up: LowRankLinear,
        down: LowRankLinear,
        activation: str,
        norm: Norm,
        backend: str | None,
        attention: Sublayer,
    ) -> None:
        super().__init__(up, down, None, activation, norm, False, backend)
        self._factored = (up, down)
        # In a tuple, as it is a module of the block already.
        self._before = (attention,)

    def forward(
        self,
        x: torch.Tensor,
        key_mask: torch.Tensor | None = None,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        held: Any = self._buffers
        up, down = self._factored
        v1, u1 = (up.V, up.U) if held["up_v"] is None else (held["up_v"], held["up_u"])
        v2, u2 = (down.V, down.U) if held["down_v"] is None else (held["down_v"], held["down_u"])
        before = self._before[0]
        assert self.norm is not None and before.norm is not None
        return flash_svd_ffn_block(
            x,
            v1,
            u1,
            up.bias,
            v2,
            u2,
            down.bias,
            self.norm.of_block(None),
            entry=before.norm.of_block(before.last()[1]),
            activation=self.activation,
            backend=self.backend,
        )


def _branch(
    module: nn.Module, u: torch.Tensor | None, v: torch.Tensor | None, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Rank-space activation, second factor and bias of one branch of x [M, d]; `u` and `v` are its padded factors, if
    any.

    A dense linear is its own second factor: x is then the rank-space activation.
    """
    p = torch.mm(x, (module.V if v is None else v).T) if isinstance(module, LowRankLinear) else x
    return p, second_of(module) if u is None else u, bias_of(module)


def _aligned_factors(module: nn.Module | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Factors whose rank is padded (`absorb.aligned`), of which the module's own become views; None where its own
    are aligned or it is dense."""
    if not isinstance(module, LowRankLinear):
        return None, None
    rank = module.V.shape[0]
    u, v = aligned(module.U.detach(), module.V.detach())
    if v.shape[0] == rank:
        return None, None
    module.U = nn.Parameter(u[:, :rank], requires_grad=False)
    module.V = nn.Parameter(v[:rank], requires_grad=False)
    return u, v
