"""Attention on factors in plain torch tile loops: the kernel's streaming, with each tile's memory reused."""

from __future__ import annotations

import functools

import torch

from flashsvd.kernels.attention.naive import Rotation
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
    causal: bool = False,
    window: int | None = None,
    rotation: Rotation | None = None,
) -> torch.Tensor:
    """softmax(q kᵀ·scale) v, [B, S, heads*head_dim]; q, k and v exist one tile at a time.

    The query heads of one kv head are stacked as rows, so a rebuilt key tile serves them all. fp16 and bf16
    are cast to fp32 tile by tile. Source: FlashSVD, arXiv 2508.01506, with the online softmax of arXiv
    2307.08691.
    """
    batch, seq = q.p.shape[:2]
    keys = k.p.shape[1]
    group = heads // kv_heads
    max_rank = max((proj.layout.max_rank for proj in (q, k, v) if proj.layout is not None), default=0)
    # [B, S, H*h]
    out = torch.empty(batch, seq, heads * head_dim, dtype=q.p.dtype, device=q.p.device)
    widths = (head_dim,) * kv_heads
    if rotation is None:
        read_q, read_k = (functools.partial(_rebuild, proj, head_dim) for proj in (q, k))
    else:
        # Queries stand at the last S places.
        last = tuple(part[:, keys - seq :] for part in rotation)
        read_q, read_k = (
            functools.partial(_rebuild_turned, proj, head_dim, turn)
            for proj, turn in ((q, last), (k, rotation))
        )
    return attend_in_tiles(
        read_q,
        read_k,
        functools.partial(_rebuild, v, head_dim),
        out,
        keys,
        widths,
        widths,
        group,
        key_mask,
        scale,
        attention_stream_tiles(
            batch,
            seq,
            group,
            head_dim,
            max_rank,
            q.p.dtype,
            keys=keys,
            rotary=rotation is not None,
            by_place=causal or window is not None,
        ),
        window,
        causal,
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


def _rebuild_turned(
    proj: Projection,
    head_dim: int,
    rotation: tuple[torch.Tensor, ...],
    head: int,
    b: slice,
    s: slice,
    out: torch.Tensor,
) -> torch.Tensor:
    """The same, turned by the angles of its rows, always in `out`."""
    tile = _rebuild(proj, head_dim, head, b, s, out)
    if tile is not out:
        out.copy_(tile)
    # [BB or 1, rows, h/2]
    cos, sin = (
        (part[b, s] if len(part) > 1 else part[:, s])[..., : head_dim // 2].to(out.dtype) for part in rotation
    )
    first, second = out.split(head_dim // 2, -1)
    before = first.clone()
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(before, sin)
    return out
