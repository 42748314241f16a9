"""Attention on factors: q, k and v are rebuilt tile by tile from rank-space activations, never as a whole.

The algorithm is FlashSVDAttn of FlashSVD (arXiv 2508.01506): online softmax over tiles, with the tiles of q,
k and v made on chip as P·U + b.
"""

from __future__ import annotations

import math

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import check_activation, check_key_mask, check_projection
from flashsvd.kernels.attention.naive import naive_attention
from flashsvd.kernels.attention.stream import stream_attention
from flashsvd.kernels.backend import resolve
from flashsvd.kernels.layout import Projection

__all__ = ["flash_svd_attention"]


@torch.no_grad()
def flash_svd_attention(
    q: Projection,
    k: Projection,
    v: Projection,
    *,
    heads: int,
    kv_heads: int | None = None,
    head_dim: int,
    key_mask: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Bidirectional attention softmax(q kᵀ·scale) v over heads given as factors; inference only, no
    gradients.

    q, k, v: one Projection each, with its own ranks and layout or dense; q has `heads` heads, k and v
    `kv_heads` (all `heads` unless given), and query head i reads kv head i // (heads // kv_heads).
    key_mask: bool [B, S], True where a key may be attended to; a sequence with no such key gives exactly 0.
    scale: 1/sqrt(head_dim) unless given. backend: see `flashsvd.kernels.backend.resolve`.

    Returns [B, S, heads*head_dim] in q's dtype, contiguous. Raises InputError when shapes, dtypes, devices or
    heads do not fit, DeviceError when the backend cannot run on the tensors' device.

    Source: FlashSVD, arXiv 2508.01506, and FlashAttention-2, arXiv 2307.08691, for the online softmax.

    >>> from flashsvd.kernels import HeadLayout, Projection, flash_svd_attention
    >>> layout = HeadLayout((3, 5))
    >>> qkv = [Projection(torch.randn(1, 7, 8), torch.randn(8, 16), None, layout, None) for _ in range(3)]
    >>> flash_svd_attention(*qkv, heads=2, head_dim=16).shape
    torch.Size([1, 7, 32])
    """
    kv_heads = heads if kv_heads is None else kv_heads
    _check(q, k, v, heads, kv_heads, head_dim, key_mask)
    chosen = resolve(backend, q.p.device)
    scale = 1.0 / math.sqrt(head_dim) if scale is None else float(scale)
    if q.p.numel() == 0:
        return q.p.new_zeros(*q.p.shape[:2], heads * head_dim)
    if chosen == "naive":
        return naive_attention(q, k, v, heads, kv_heads, head_dim, key_mask, scale)
    if chosen == "torch":
        return stream_attention(q, k, v, heads, kv_heads, head_dim, key_mask, scale)
    from flashsvd.kernels.attention.launch import launch_attention

    return launch_attention(q, k, v, heads, kv_heads, head_dim, key_mask, scale)


def _check(
    q: Projection,
    k: Projection,
    v: Projection,
    heads: int,
    kv_heads: int,
    head_dim: int,
    key_mask: torch.Tensor | None,
) -> None:
    if heads < 1 or head_dim < 1:
        raise InputError(f"heads and head_dim must be at least 1, got {heads} and {head_dim}")
    if kv_heads < 1 or heads % kv_heads:
        raise InputError(
            f"kv_heads must divide heads, got {kv_heads} and {heads}; pass the model's num_key_value_heads"
        )
    check_activation("q.p", q.p)
    if q.p.dim() != 3:
        raise InputError(f"q.p must be [batch, sequence, width], got {list(q.p.shape)}")
    for name, proj, count in (("q", q, heads), ("k", k, kv_heads), ("v", v, kv_heads)):
        check_projection(name, proj, count, head_dim, q.p)
    if key_mask is not None:
        check_key_mask(key_mask, q.p, like_name="q.p")
