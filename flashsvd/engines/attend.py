"""Attention of a decoder's queries to the keys of all tokens so far, as they come out of a cache."""

from __future__ import annotations

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from flashsvd.errors import InputError
from flashsvd.kernels.backend import resolve
from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.rank_space import rank_space_attention


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    columns: int | torch.Tensor,
    key_mask: torch.Tensor | None,
    window: int | None,
    scale: float,
    backend: str | None = None,
) -> torch.Tensor:
    """softmax(q kᵀ·scale) v of heads at hand, [b, S, H·v's width]: q [b, S, H·w], k [b, Hk, T, w], v [b, Hk, T, w2].

    Query head i reads kv head i // (H / Hk). `columns` of the T keys come before the first query's own; key_mask bool
    [b, T]. Without a mask, a window that matters or keys that only some queries see, nothing of size [S, T] is made. A
    token that is masked itself sees itself alone or gives 0: every number is finite. q may be written over.

    It is torch's own attention, except where that would need a mask or has no kernel, and ours can read the keys as
    they lie (`flashsvd.kernels.rank_space`).
    """
    (batch, seq, _), (_, kv_heads, total, width) = q.shape, k.shape
    if window is not None and window >= total - 1:
        window = None
    whole = isinstance(columns, int) and columns + seq == total
    plain = whole and columns == 0 and key_mask is None and window is None and width == v.shape[3]
    if seq > 1 and whole and not plain and (sides := _side_by_side(k, v, backend)) is not None:
        return rank_space_attention(
            q,
            *sides,
            score=HeadLayout((width,) * kv_heads),
            value=HeadLayout((v.shape[3],) * kv_heads),
            kv_group=q.shape[2] // (kv_heads * width),
            scale=scale,
            key_mask=key_mask,
            window=window,
            causal=True,
            out=q if width == v.shape[3] else None,
            backend=backend,
        )
    q = q.unflatten(-1, (-1, width)).transpose(1, 2)
    group = q.shape[1] // kv_heads
    seen = _seen(seq, total, columns, key_mask, window, q.device)
    if seq == 1:
        # The queries that share a kv head are so many rows of it.
        q = q.reshape(batch, kv_heads, group, width)
        heads = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
        return heads.reshape(batch, 1, -1)
    if seen is None:
        heads = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=group > 1)
    else:
        if group > 1:
            # With a mask and grouped queries torch has no kernel that leaves the scores on chip.
            k, v = (part.repeat_interleave(group, 1) for part in (k, v))
        heads = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
    return heads.transpose(1, 2).flatten(2)


def _side_by_side(
    k: torch.Tensor, v: torch.Tensor, backend: str | None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Keys and values [b, Hk, T, w] as [b, T, Hk·w], where they lie so and a kernel reads them."""
    if k.dtype == torch.float64 or resolve(backend, k.device) not in ("triton", "interpret"):
        return None
    if any(part.stride(3) != 1 or part.stride(1) != part.shape[3] for part in (k, v)):
        return None
    flat_k, flat_v = (part.transpose(1, 2).flatten(2) for part in (k, v))
    return flat_k, flat_v


def _seen(
    seq: int,
    total: int,
    columns: int | torch.Tensor,
    key_mask: torch.Tensor | None,
    window: int | None,
    device: torch.device,
) -> torch.Tensor | None:
    """Which keys a query sees, bool [b or 1, 1, S, T]; None where that is all up to its own, and these are all."""
    exact = isinstance(columns, int) and columns + seq == total
    if exact and key_mask is None and window is None and (seq in (1, total)):
        return None
    places = torch.arange(seq, device=device)[:, None] + columns
    gap = places - torch.arange(total, device=device)
    seen = gap >= 0
    if window is not None:
        seen &= gap <= window
    if key_mask is None:
        return seen[None, None]
    return (seen & key_mask[:, None] | (gap == 0))[:, None]


def aligned_mask(
    key_mask: torch.Tensor | None, columns: int | torch.Tensor, seq: int, total: int
) -> torch.Tensor | None:
    """A mask of all tokens so far as one of the keys at hand, [B, total]."""
    if key_mask is None:
        return None
    length = key_mask.shape[1]
    if not isinstance(columns, int):
        # Keys that are still to come are behind every query.
        return pad(key_mask, (0, total - length)) if length < total else key_mask[:, :total]
    if length < columns + seq:
        raise InputError(
            f"the attention mask must cover all {columns + seq} tokens so far, those in the cache too, got {length}"
        )
    return key_mask[:, length - columns - seq :]
