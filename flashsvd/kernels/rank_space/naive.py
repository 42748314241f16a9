"""The definition of rank-space attention: head by head, with all scores materialised."""

from __future__ import annotations

import torch

from flashsvd.kernels.attention.naive import visible
from flashsvd.kernels.layout import HeadLayout


def naive_rank_space(
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
    """softmax(q kᵀ·scale) v in `out`, in the inputs' dtype; rows with no allowed key are 0."""
    # [B, S, r] per query head, [B, T, r] per kv head
    q_heads = q.split(score.repeated(kv_group).ranks, dim=-1)
    k_heads = k.split(score.ranks, dim=-1)
    v_heads = v.split(value.ranks, dim=-1)
    allowed = None if key_mask is None else key_mask[:, None, :]
    # [S, T]
    seen = visible(q.shape[1], k.shape[1], causal, window, q.device)
    if seen is not None:
        allowed = seen if allowed is None else allowed & seen
    results = []
    for head, q_head in enumerate(q_heads):
        # [B, S, T]
        scores = (q_head @ k_heads[head // kv_group].mT) * scale
        if allowed is None:
            weights = scores.softmax(-1)
        else:
            # The most negative finite number, not -inf: a row with no allowed key must not become NaN.
            weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1) * allowed
        results.append(weights @ v_heads[head // kv_group])
    # Written last, as `out` may be q.
    return out.copy_(torch.cat(results, dim=-1))
