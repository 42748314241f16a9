"""FFN v1 in plain torch tile loops: the same streaming as the Triton kernel, with each tile's memory
reused."""

from __future__ import annotations

import torch

from flashsvd.kernels.ffn.activation import activate_
from flashsvd.kernels.tiles import ffn_stream_tiles


@torch.no_grad()
def stream_ffn(
    p: torch.Tensor, u1: torch.Tensor, b1: torch.Tensor | None, v2: torch.Tensor, activation: str
) -> torch.Tensor:
    """act(p @ u1ᵀ + b1) @ v2ᵀ for p [M, R1], u1 [D, R1], b1 [D] or None, v2 [R2, D]; returns [M, R2].

    One tile t of the wide activation is alive at a time. Sums over D are kept in fp32: fp16 and bf16 take all
    of D in one product, whose sum stays in registers, and only rows are tiled. Source: FlashSVD, arXiv
    2508.01506, FFN v1.
    """
    # M rows, D wide dimension, R1 and R2 ranks; BM, BD rows and columns of a tile of the wide activation.
    rows, width, rank_out = p.shape[0], u1.shape[0], v2.shape[0]
    tiles = ffn_stream_tiles(rows, width, p.dtype)
    # [M, R2]
    out = torch.empty(rows, rank_out, dtype=p.dtype, device=p.device)
    # [BM, BD]
    tile = torch.empty(tiles.block_m * tiles.block_d, dtype=p.dtype, device=p.device)
    for row in range(0, rows, tiles.block_m):
        m = slice(row, min(row + tiles.block_m, rows))
        for column in range(0, width, tiles.block_d):
            d = slice(column, min(column + tiles.block_d, width))
            # [BM, BD]
            t = tile[: (m.stop - m.start) * (d.stop - d.start)].view(m.stop - m.start, d.stop - d.start)
            if b1 is None:
                torch.mm(p[m], u1[d].T, out=t)
            else:
                torch.addmm(b1[d], p[m], u1[d].T, out=t)
            activate_(t, activation)
            if column == 0:
                torch.mm(t, v2[:, d].T, out=out[m])
            else:
                out[m].addmm_(t, v2[:, d].T)
    return out
