"""Attention on factors: q, k and v are rebuilt tile by tile from rank-space activations, never as a whole.

The algorithm is FlashSVDAttn of FlashSVD (arXiv 2508.01506): online softmax over tiles, with the tiles of q,
k and v made on chip as P·U + b. With rotary positions those of q and k are turned there, too.
"""

from __future__ import annotations

import math

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import (
    check_activation,
    check_key_mask,
    check_projection,
    check_tensor,
    check_window,
    count_keys,
)
from flashsvd.kernels.attention.naive import Rotation, naive_attention
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
    causal: bool = False,
    window: int | None = None,
    rotation: Rotation | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Attention softmax(q kᵀ·scale) v over heads given as factors; inference only, no gradients.

    q, k, v: one Projection each, with its own ranks and layout or dense; q has `heads` heads, k and v
    `kv_heads` (all `heads` unless given), and query head i reads kv head i // (heads // kv_heads).
    key_mask: bool [B, T], True where a key may be attended to; a query that sees no such key gives exactly 0.
    scale: 1/sqrt(head_dim) unless given. backend: see `flashsvd.kernels.backend.resolve`.

    causal: a query sees no key behind its own place. k and v may then have T tokens where q has S, T >= S, of which the
    queries are the last: prefill with a cache. Else T is S.
    window: a query sees keys at most this many places away, to either side, or back where `causal`; every key for
    None. A `sliding_window` of transformers is a window of one less.
    rotation: (cos, sin) [B or 1, T, h], of any floating dtype, both halves alike, as transformers makes them: q and k,
    with their biases, are turned by the angle of their token as by `flashsvd.kernels.rotary`. h is even then.

    Returns [B, S, heads*head_dim] in q's dtype, contiguous. Raises InputError when shapes, dtypes, devices or
    heads do not fit, DeviceError when the backend cannot run on the tensors' device.

    Source: FlashSVD, arXiv 2508.01506, and FlashAttention-2, arXiv 2307.08691, for the online softmax;
    RoFormer, arXiv 2104.09864, for the turn, in the half-split form of GPT-NeoX.

    >>> from flashsvd.kernels import HeadLayout, Projection, flash_svd_attention
    >>> layout = HeadLayout((3, 5))
    >>> qkv = [Projection(torch.randn(1, 7, 8), torch.randn(8, 16), None, layout, None) for _ in range(3)]
    >>> flash_svd_attention(*qkv, heads=2, head_dim=16).shape
    torch.Size([1, 7, 32])
    """
    kv_heads = heads if kv_heads is None else kv_heads
    _check(q, k, v, heads, kv_heads, head_dim, key_mask, causal, window, rotation)
    chosen = resolve(backend, q.p.device)
    scale = 1.0 / math.sqrt(head_dim) if scale is None else float(scale)
    if q.p.numel() == 0:
        return q.p.new_zeros(*q.p.shape[:2], heads * head_dim)
    if window is not None and window >= k.p.shape[1] - 1:
        # No two tokens are further apart.
        window = None
    arguments = (q, k, v, heads, kv_heads, head_dim, key_mask, scale, causal, window, rotation)
    if chosen == "naive":
        return naive_attention(*arguments)
    if chosen == "torch":
        return stream_attention(*arguments)
    from flashsvd.kernels.attention.launch import launch_attention

    return launch_attention(*arguments)


def _check(
    q: Projection,
    k: Projection,
    v: Projection,
    heads: int,
    kv_heads: int,
    head_dim: int,
    key_mask: torch.Tensor | None,
    causal: bool,
    window: int | None,
    rotation: Rotation | None,
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
    check_activation("k.p", k.p)
    seq = q.p.shape[1]
    keys = count_keys(k.p, q.p, causal, name="k.p", like_name="q.p")
    for name, proj, count, tokens in (
        ("q", q, heads, seq),
        ("k", k, kv_heads, keys),
        ("v", v, kv_heads, keys),
    ):
        check_projection(name, proj, count, head_dim, q.p, tokens)
    if key_mask is not None:
        check_key_mask(key_mask, k.p, like_name="k.p")
    check_window(window)
    if rotation is not None:
        _check_rotation(rotation, head_dim, k.p)


def _check_rotation(rotation: Rotation, head_dim: int, k: torch.Tensor) -> None:
    if not isinstance(rotation, tuple) or len(rotation) != 2:
        raise InputError(f"rotation must be (cos, sin) or None, got {type(rotation).__name__}")
    if head_dim % 2:
        raise InputError(f"rotation needs an even head_dim, got {head_dim}")
    cos, sin = rotation
    for name, tensor in (("cos", cos), ("sin", sin)):
        check_activation(name, tensor)
    batch, keys = k.shape[:2]
    if tuple(cos.shape) not in ((batch, keys, head_dim), (1, keys, head_dim)):
        raise InputError(
            f"cos must be [{batch} or 1, {keys}, {head_dim}], a row per token of k, got {list(cos.shape)}"
        )
    check_tensor("sin", sin, tuple(cos.shape), cos, like_name="cos")
    if cos.device != k.device:
        raise InputError(f"cos is on {cos.device} but k.p on {k.device}; move one of them")
