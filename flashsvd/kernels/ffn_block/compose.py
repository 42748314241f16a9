"""The feed-forward sublayer as a sequence of this library's other ops, for whatever its one kernel does not take."""

from __future__ import annotations

import torch

from flashsvd.kernels.backend import Backend
from flashsvd.kernels.ffn import flash_svd_ffn
from flashsvd.kernels.ffn_block.operands import BlockNorm, BlockOperands
from flashsvd.kernels.norm import fused_norm


@torch.no_grad()
def compose_block(block: BlockOperands, backend: Backend) -> None:
    """Writes the result over x [..., d]; beside it only x·v1ᵀ [M, R1] is in memory, and S [M, R2] where R2 differs."""
    x = block.matrix()
    if block.entry is not None:
        _norm(x, block.entry, block.entry.bias, backend)
    p = torch.mm(x, block.v1.T)
    s = flash_svd_ffn(
        p,
        block.u1,
        block.b1,
        block.v2,
        activation=block.activation,
        out=p if block.rank_in == block.rank_out else None,
        backend=backend,
    )
    x.addmm_(s, block.u2.T)
    _norm(x, block.norm, block.b2, backend)


def _norm(x: torch.Tensor, norm: BlockNorm, bias: torch.Tensor | None, backend: Backend) -> None:
    fused_norm(x, norm.weight, norm.shift, norm.eps, bias=bias, kind=norm.kind, out=x, backend=backend)
