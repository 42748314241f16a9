"""Rank-space attention in plain torch tile loops: the kernel's streaming, with each tile's memory reused."""

from __future__ import annotations

from functools import partial

import torch

from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.online_softmax import attend_in_tiles
from flashsvd.kernels.tiles import attention_stream_tiles


@torch.no_grad()
def stream_rank_space(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int,
    scale: float,
    key_mask: torch.Tensor | None,
    window: int | None,
    causal: bool = False,
) -> torch.Tensor:
    """softmax(q kᵀ·scale) v in `out`; the scores exist one tile at a time.

    fp16 and bf16 are cast to fp32 tile by tile. Source: FlashAttention-2, arXiv 2307.08691.
    """
    batch, seq = q.shape[:2]
    widest = max(score.max_rank, value.max_rank)
    return attend_in_tiles(
        partial(_head, q, score.repeated(kv_group)),
        partial(_head, k, score),
        partial(_head, v, value),
        out,
        k.shape[1],
        score.ranks,
        value.ranks,
        kv_group,
        key_mask,
        scale,
        attention_stream_tiles(
            batch,
            seq,
            kv_group,
            widest,
            0,
            q.dtype,
            keys=k.shape[1],
            by_place=causal or window is not None,
        ),
        window,
        causal,
    )


def _head(
    tensor: torch.Tensor, layout: HeadLayout, head: int, b: slice, s: slice, buffer: torch.Tensor
) -> torch.Tensor:
    """Tile [BB, rows, r] of one head: a view, or cast into `buffer`."""
    start, _, rank = layout.spans[head]
    tile = tensor[b, s, start : start + rank]
    return tile if tile.dtype == buffer.dtype else buffer.copy_(tile)
