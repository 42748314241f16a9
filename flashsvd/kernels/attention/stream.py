"""Attention on factors in plain torch tile loops: the kernel's streaming, with each tile's memory reused."""

from __future__ import annotations

import functools

import torch

from flashsvd.kernels.layout import Projection
from flashsvd.kernels.online_softmax import attend_in_tiles
from flashsvd.kernels.tiles import attention_stream_tiles


@torch.no_grad()
def stream_attention(
    q: Projection,
    k: Projection,
    v: Projection,
    heads: int,
    kv_heads: int,
    head_dim: int,
    key_mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """softmax(q kᵀ·scale) v, [B, S, heads*head_dim]; q, k and v exist one tile at a time.

    The query heads of one kv head are stacked as rows, so a rebuilt key tile serves them all. fp16 and bf16
    are cast to fp32 tile by tile. Source: FlashSVD, arXiv 2508.01506, with the online softmax of arXiv
    2307.08691.
    """
    batch, seq = q.p.shape[:2]
    group = heads // kv_heads
    max_rank = max((proj.layout.max_rank for proj in (q, k, v) if proj.layout is not None), default=0)
    # [B, S, H*h]
    out = torch.empty(batch, seq, heads * head_dim, dtype=q.p.dtype, device=q.p.device)
    widths = (head_dim,) * kv_heads
    return attend_in_tiles(
        functools.partial(_rebuild, q, head_dim),
        functools.partial(_rebuild, k, head_dim),
        functools.partial(_rebuild, v, head_dim),
        out,
        widths,
        widths,
        group,
        key_mask,
        scale,
        attention_stream_tiles(batch, seq, group, head_dim, max_rank, q.p.dtype),
    )


def _rebuild(
    proj: Projection, head_dim: int, head: int, b: slice, s: slice, out: torch.Tensor
) -> torch.Tensor:
    """Tile [BB, rows, h] of one head: written to `out`, or a view where the projection already holds it."""
    p, u, bias = proj.head_parts(head, head_dim)
    p = p[b, s].to(out.dtype)
    if u is None:
        return p if bias is None else torch.add(p, bias, out=out)
    u = u.to(out.dtype).expand(p.shape[0], -1, -1)
    return torch.bmm(p, u, out=out) if bias is None else torch.baddbmm(bias.to(out.dtype), p, u, out=out)
