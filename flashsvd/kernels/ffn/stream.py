"""The feed-forward ops in plain torch tile loops: small tiles that stay in a CPU's cache, or on a GPU one chunk of
rows at a time through cuBLAS. Each tile's memory is reused."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flashsvd.kernels.ffn.activation import activate_, in_epilogue, linear_activated
from flashsvd.kernels.ffn.operands import FfnOperands

Gate = Callable[[torch.Tensor, torch.Tensor, str], None]
"""Writes act(gate)·up over the gate, both contiguous."""


def gate_in_torch(gate: torch.Tensor, up: torch.Tensor, activation: str) -> None:
    """`Gate` in plain torch; the half types go by fp32, as two roundings where one will do were past the gate
    (6.1e-3 at 40 columns of bf16)."""
    if gate.element_size() == 2:
        gate.copy_(activate_(gate.float(), activation).mul_(up))
    else:
        activate_(gate, activation).mul_(up)


@torch.no_grad()
def stream_ffn(
    ffn: FfnOperands, out: torch.Tensor, block_m: int, block_d: int, gate: Gate = gate_in_torch
) -> torch.Tensor:
    """Fills `out` [M, R2], or [M, N] with an output factor, by tiles of `block_m` rows and `block_d` columns of
    the wide activation.

    One tile of it is alive at a time, two where gated. With `block_d` of all D, each sum over D stays in one
    product, which the half types need: between two, it would be rounded. Source: FlashSVD, arXiv 2508.01506.
    """
    # M rows, D wide dimension, R2 rank, N width of the output factor; BM, BD rows and columns of a tile.
    gated = ffn.up_p is not None and ffn.up_u is not None
    fused = not gated and ffn.p.is_cuda and in_epilogue(ffn.activation, ffn.p.dtype)
    # [BM, BD], twice if gated
    tile = torch.empty(block_m * block_d * (2 if gated else 1), dtype=ffn.p.dtype, device=ffn.p.device)
    # [BM, R2]
    sums = (
        None if ffn.u2 is None else torch.empty(block_m, ffn.rank_out, dtype=ffn.p.dtype, device=ffn.p.device)
    )
    for row in range(0, ffn.rows, block_m):
        m = slice(row, min(row + block_m, ffn.rows))
        # [BM, R2]
        s = out[m] if sums is None else sums[: m.stop - m.start]
        for column in range(0, ffn.width, block_d):
            d = slice(column, min(column + block_d, ffn.width))
            shape = (m.stop - m.start, d.stop - d.start)
            size = shape[0] * shape[1]
            # [BM, BD]
            t = tile[:size].view(shape)
            if fused:
                linear_activated(
                    ffn.p[m], ffn.u1[d], None if ffn.b1 is None else ffn.b1[d], ffn.activation, t
                )
            else:
                _product(ffn.p[m], ffn.u1[d], ffn.b1, d, t)
            if ffn.up_p is not None and ffn.up_u is not None:
                up = _product(ffn.up_p[m], ffn.up_u[d], ffn.up_b, d, tile[size : 2 * size].view(shape))
                gate(t, up, ffn.activation)
            elif not fused:
                activate_(t, ffn.activation)
            if column == 0:
                torch.mm(t, ffn.v2[:, d].T, out=s)
            else:
                s.addmm_(t, ffn.v2[:, d].T)
        if ffn.u2 is not None:
            _product(s, ffn.u2, ffn.b2, slice(None), out[m])
    return out


def _product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, columns: slice, out: torch.Tensor
) -> torch.Tensor:
    """x @ weightᵀ + bias[columns], written to `out`."""
    if bias is None:
        return torch.mm(x, weight.T, out=out)
    return torch.addmm(bias[columns], x, weight.T, out=out)
