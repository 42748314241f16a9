"""The definition of attention on factors: rebuild every head, score, softmax, weigh. Everything is
materialised."""

from __future__ import annotations

import torch

from flashsvd.kernels.layout import Projection


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
) -> torch.Tensor:
    """softmax(q kᵀ·scale) v, [B, S, heads*head_dim], in the inputs' dtype; rows with no allowed key are 0."""
    group = heads // kv_heads
    qh = rebuild_heads(q, heads, head_dim)
    kh = rebuild_heads(k, kv_heads, head_dim).repeat_interleave(group, dim=1)
    vh = rebuild_heads(v, kv_heads, head_dim).repeat_interleave(group, dim=1)
    scores = (qh @ kh.transpose(-1, -2)) * scale
    if key_mask is None:
        weights = scores.softmax(-1)
    else:
        allowed = key_mask[:, None, None, :]
        # The most negative finite number, not -inf: a row with no allowed key must not become NaN.
        weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1) * allowed
    return (weights @ vh).transpose(1, 2).flatten(2)
