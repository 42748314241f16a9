"""The definition of attention on factors: rebuild every head, turn it, score, softmax, weigh. Everything is
materialised."""

from __future__ import annotations

import torch

from flashsvd.kernels.layout import Projection
from flashsvd.kernels.rotary.naive import naive_rotary

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines [B or 1, T, h] of the keys' places, both halves alike."""


def visible(
    queries: int, keys: int, causal: bool, window: int | None, device: torch.device
) -> torch.Tensor | None:
    """bool [S, T]: the keys that a query sees by their places, None for all. The last query stands where the last
    key does.

    >>> visible(2, 4, True, 1, torch.device("cpu")).int().tolist()
    [[0, 1, 1, 0], [0, 0, 1, 1]]
    """
    if not causal and window is None:
        return None
    # [S, T]
    back = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    seen = back >= 0 if causal else torch.ones_like(back, dtype=torch.bool)
    return seen if window is None else seen & (back.abs() <= window)


def rebuild_heads(proj: Projection, heads: int, head_dim: int) -> torch.Tensor:
    """All heads of a projection, [B, heads, S, head_dim]."""
    rebuilt = []
    for head in range(heads):
        p, u, bias = proj.head_parts(head, head_dim)
        y = p if u is None else p @ u
        rebuilt.append(y if bias is None else y + bias)
    return torch.stack(rebuilt, dim=1)


def naive_attention(
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
    """softmax(q kᵀ·scale) v, [B, S, heads*head_dim], in the inputs' dtype; rows with no allowed key are 0."""
    group = heads // kv_heads
    qh, kh = rebuild_heads(q, heads, head_dim), rebuild_heads(k, kv_heads, head_dim)
    if rotation is not None:
        qh, kh = (_turned(part, rotation) for part in (qh, kh))
    kh = kh.repeat_interleave(group, dim=1)
    vh = rebuild_heads(v, kv_heads, head_dim).repeat_interleave(group, dim=1)
    scores = (qh @ kh.transpose(-1, -2)) * scale
    allowed = None if key_mask is None else key_mask[:, None, None, :]
    seen = visible(qh.shape[2], kh.shape[2], causal, window, qh.device)
    if seen is not None:
        allowed = seen if allowed is None else allowed & seen
    if allowed is None:
        weights = scores.softmax(-1)
    else:
        # The most negative finite number, not -inf: a row with no allowed key must not become NaN.
        weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1) * allowed
    return (weights @ vh).transpose(1, 2).flatten(2)


def _turned(heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Heads [B, H, S, h] turned by the last S places."""
    cos, sin = (part[:, part.shape[1] - heads.shape[2] :] for part in rotation)
    # A head at a time has the shape that the rotary op takes.
    return torch.stack([naive_rotary(head, cos, sin) for head in heads.unbind(1)], dim=1)
