"""The definition of the feed-forward sublayer: two norms around a residual, and every product in memory."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from flashsvd.kernels.ffn.activation import activate
from flashsvd.kernels.ffn_block.operands import BlockNorm, BlockOperands
from flashsvd.kernels.norm.naive import naive_norm


def naive_ffn_block(block: BlockOperands) -> torch.Tensor:
    """norm(z + act(z·v1ᵀ·u1ᵀ + b1)·v2ᵀ·u2ᵀ + b2) [M, d], where z = entry(x); x is left as it is."""
    z = block.matrix()
    if block.entry is not None:
        z = _normed(z, block.entry, block.entry.bias)
    h = activate(linear(z @ block.v1.T, block.u1, block.b1), block.activation)
    return _normed(z + h @ block.v2.T @ block.u2.T, block.norm, block.b2)


def _normed(x: torch.Tensor, norm: BlockNorm, bias: torch.Tensor | None) -> torch.Tensor:
    return naive_norm(x, norm.weight, norm.shift, norm.eps, bias, norm.kind)
