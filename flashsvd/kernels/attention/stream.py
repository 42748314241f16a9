"""Attention on factors in plain torch tile loops: the kernel's streaming, with each tile's memory reused."""

from __future__ import annotations

import torch

from flashsvd.kernels.layout import Projection
from flashsvd.kernels.tiles import accumulate_dtype, attention_stream_tiles


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
    # B batch, S sequence, G query heads per kv head, H heads, h head dim; a tile has BB sequences, BM query
    # rows and BN keys.
    batch, seq = q.p.shape[:2]
    group = heads // kv_heads
    dtype = accumulate_dtype(q.p.dtype)
    max_rank = max((proj.layout.max_rank for proj in (q, k, v) if proj.layout is not None), default=0)
    tiles = attention_stream_tiles(batch, seq, group, head_dim, max_rank, q.p.dtype)
    # [B, S, H*h]
    out = torch.empty(batch, seq, heads * head_dim, dtype=q.p.dtype, device=q.p.device)
    buffers = _Buffers(dtype, q.p.device)
    for b0 in range(0, batch, tiles.block_b):
        b = slice(b0, min(b0 + tiles.block_b, batch))
        for kv_head in range(kv_heads):
            for m0 in range(0, seq, tiles.block_m):
                m = slice(m0, min(m0 + tiles.block_m, seq))
                rows = m.stop - m.start
                query_heads = range(kv_head * group, (kv_head + 1) * group)
                # [BB, G*BM, h]
                q_tile = buffers.view("q", b.stop - b.start, group * rows, head_dim)
                for g, head in enumerate(query_heads):
                    part = q_tile[:, g * rows : (g + 1) * rows]
                    rebuilt = _rebuild(q, head, head_dim, b, m, part)
                    if group == 1:
                        q_tile = rebuilt
                    elif rebuilt is not part:
                        part.copy_(rebuilt)
                softmax = _OnlineSoftmax(buffers, q_tile, scale)
                for n0 in range(0, seq, tiles.block_n):
                    n = slice(n0, min(n0 + tiles.block_n, seq))
                    shape = (b.stop - b.start, n.stop - n.start, head_dim)
                    # [BB, BN, h]
                    k_tile = _rebuild(k, kv_head, head_dim, b, n, buffers.view("k", *shape))
                    # [BB, BN, h]
                    v_tile = _rebuild(v, kv_head, head_dim, b, n, buffers.view("v", *shape))
                    softmax.add(k_tile, v_tile, None if key_mask is None else key_mask[b, None, n])
                # [BB, G*BM, h]
                result = softmax.finish()
                for g, head in enumerate(query_heads):
                    out[b, m, head * head_dim : (head + 1) * head_dim] = result[:, g * rows : (g + 1) * rows]
    return out


class _Buffers:
    """One flat allocation per name, viewed in the shape of the tile at hand; it grows only to the first, full
    tile."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self._flat: dict[str, torch.Tensor] = {}

    def view(self, name: str, *shape: int) -> torch.Tensor:
        size = shape[0] * shape[1] * shape[2]
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size:
            flat = self._flat[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return flat[:size].view(shape)


class _OnlineSoftmax:
    """softmax(q kᵀ·scale) v over key tiles that come one by one; q [BB, R, h]."""

    def __init__(self, buffers: _Buffers, q: torch.Tensor, scale: float) -> None:
        self.buffers = buffers
        self.q = q
        self.scale = scale
        batch, rows, head_dim = q.shape
        # [BB, R, h]
        self.acc = buffers.view("acc", batch, rows, head_dim)
        # [BB, R, 1]
        self.total = buffers.view("total", batch, rows, 1)
        # [BB, R, 1]
        self.pivot = buffers.view("pivot", batch, rows, 1)
        self.empty = True

    def add(self, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor | None) -> None:
        """Fold in keys and values [BB, BN, h], of which `allowed` [BB, 1, BN] may be attended to."""
        batch, rows, _ = self.q.shape
        # [BB, R, BN]
        scores = self.buffers.view("scores", batch, rows, k.shape[1])
        torch.baddbmm(scores, self.q, k.mT, beta=0, alpha=self.scale, out=scores)
        if allowed is not None:
            scores.masked_fill_(~allowed, float("-inf"))
        # [BB, R, 1]
        pivot = torch.amax(scores, -1, keepdim=True, out=self.buffers.view("tile_pivot", batch, rows, 1))
        if self.empty:
            # Finite even when no key of the tile is allowed: -inf would give exp(-inf + inf) = NaN.
            torch.clamp(pivot, min=torch.finfo(pivot.dtype).min / 2, out=self.pivot)
            weights = scores.sub_(self.pivot).exp_()
            torch.sum(weights, -1, keepdim=True, out=self.total)
            torch.bmm(weights, v, out=self.acc)
            self.empty = False
            return
        torch.maximum(pivot, self.pivot, out=pivot)
        weights = scores.sub_(pivot).exp_()
        shrink = self.pivot.sub_(pivot).exp_()
        self.total.mul_(shrink).add_(weights.sum(-1, keepdim=True))
        self.acc.mul_(shrink).baddbmm_(weights, v)
        self.pivot.copy_(pivot)

    def finish(self) -> torch.Tensor:
        """The weighted mean [BB, R, h]; 0 for a row that saw no allowed key."""
        return self.acc.div_(self.total.clamp_min_(torch.finfo(self.total.dtype).tiny))


def _rebuild(
    proj: Projection, head: int, head_dim: int, b: slice, s: slice, out: torch.Tensor
) -> torch.Tensor:
    """Tile [BB, rows, h] of one head: written to `out`, or a view where the projection already holds it."""
    p, u, bias = proj.head_parts(head, head_dim)
    p = p[b, s].to(out.dtype)
    if u is None:
        return p if bias is None else torch.add(p, bias, out=out)
    u = u.to(out.dtype).expand(p.shape[0], -1, -1)
    return torch.bmm(p, u, out=out) if bias is None else torch.baddbmm(bias.to(out.dtype), p, u, out=out)
