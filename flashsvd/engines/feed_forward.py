"""The feed-forward sublayer of the flash engine."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import linear

from flashsvd.engines.absorb import aligned
from flashsvd.engines.modules import LowRankLinear
from flashsvd.engines.sublayer import Norm, Sublayer, batch_slices, bias_of, first_of, second_of
from flashsvd.kernels.ffn import flash_svd_ffn


class FeedForward(Sublayer):
    """up, activation, down, streamed over the wide dimension (FFN v1)."""

    up_u: torch.Tensor | None
    up_v: torch.Tensor | None
    down_u: torch.Tensor | None
    down_v: torch.Tensor | None

    def __init__(
        self,
        up: nn.Module,
        down: nn.Module,
        activation: str,
        norm: Norm | None,
        pre_norm: bool,
        backend: str | None,
    ) -> None:
        super().__init__(norm, pre_norm, backend)
        self.activation = activation
        self._linears = (up, down)
        for name, module in (("up", up), ("down", down)):
            u, v = _aligned_factors(module)
            self.register_buffer(f"{name}_u", u, persistent=False)
            self.register_buffer(f"{name}_v", v, persistent=False)

    def cut(self, x: torch.Tensor) -> Iterator[slice]:
        # Beside a post-norm block's x only rank-space tensors are alive; a pre-norm one also holds norm(x).
        return batch_slices(x.shape[0], math.ceil(x.shape[0] / 4) if self.pre_norm else x.shape[0])

    def inner(self, x: torch.Tensor, key_mask: torch.Tensor | None) -> torch.Tensor:
        up, down = self._linears
        # A dense linear is its own second factor: x is then the rank-space activation, W1 its U1, W2 its V2.
        p = x
        if isinstance(up, LowRankLinear):
            p = linear(x, up.V if self.up_v is None else self.up_v)
        u1 = second_of(up) if self.up_u is None else self.up_u
        v2 = first_of(down) if self.down_v is None else self.down_v
        return flash_svd_ffn(p, u1, bias_of(up), v2, activation=self.activation, backend=self.backend)

    def last(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        down = self._linears[1]
        if not isinstance(down, LowRankLinear):
            return None, bias_of(down)
        return (down.U if self.down_u is None else self.down_u), bias_of(down)


def _aligned_factors(module: nn.Module) -> tuple[torch.Tensor | None, torch.Tensor | None]:
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
