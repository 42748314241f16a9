"""Attention in rank space: the factors are absorbed when a model is loaded, and q, k, v are never rebuilt.

With q = Pq·Aq + bq and k = Pk·Ak + bk, a row of scores is (Pq·Aq + bq)·Akᵀ·Pkᵀ plus a term that is the same for
all keys, which softmax does not see. The first product, with bq, folds into the projection that makes q; Av
folds into the output projection, as rows of softmax sum to one. What is left, and is computed here, is
ordinary attention whose head dim is the rank.
"""

from __future__ import annotations

import math

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import check_activation, check_key_mask, check_tensor, may_overlap
from flashsvd.kernels.backend import resolve
from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.rank_space.naive import naive_rank_space
from flashsvd.kernels.rank_space.stream import stream_rank_space

__all__ = ["rank_space_attention"]


@torch.no_grad()
def rank_space_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int = 1,
    scale: float = 1.0,
    key_mask: torch.Tensor | None = None,
    window: int | None = None,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """softmax(q kᵀ·scale) v per head, at head dims that are the heads' ranks; inference only, no gradients.

    score, value: the ranks of the kv heads, in q and k and in v. k is [B, S, score.p_width] and v
    [B, S, value.p_width], kv head i in the columns of its span. `kv_group` query heads in a row read one kv
    head, so each has that head's ranks: q is [B, S, kv_group * score.p_width] and the output
    [B, S, kv_group * value.p_width], in the layouts with every rank repeated kv_group times. Their last
    stride is 1 and the others are free, as for column slices of one packed product. Ranks and strides that
    are multiples of 16 bytes are fast on a GPU, others right but several times slower.
    scale: above 0, and 1 unless given, as it can be absorbed with the factors.
    key_mask: bool [B, S], True where a key may be attended to; a sequence with no such key gives exactly 0.
    window: a query sees the keys at most this many places away, to either side, and every key for None.
    out: takes the result, and is returned. It may be q itself where score and value have the same ranks (a
    block of q is read before the output takes its place), and else shares no memory with q, k or v.
    backend: see `flashsvd.kernels.backend.resolve`.

    Raises InputError when shapes, dtypes, devices or memory do not fit, DeviceError when the backend cannot
    run on the tensors' device.

    Source: this package's derivation, and FlashAttention-2, arXiv 2307.08691, for the online softmax.

    >>> from flashsvd.kernels import HeadLayout, rank_space_attention
    >>> score, value = HeadLayout((3, 5)), HeadLayout((4, 2))
    >>> q, k, v = torch.randn(1, 7, 8 + 8 + 6).split((8, 8, 6), dim=-1)
    >>> rank_space_attention(q, k, v, score=score, value=value).shape
    torch.Size([1, 7, 6])
    """
    shape = _check(q, k, v, score, value, kv_group, scale, key_mask)
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 0):
        raise InputError(f"window must be a whole number of at least 0, or None, got {window!r}")
    chosen = resolve(backend, q.device)
    if out is None:
        out = torch.empty(*shape, dtype=q.dtype, device=q.device)
    else:
        _check_out(out, shape, q, k, v, score.ranks == value.ranks)
    if out.numel() == 0:
        return out
    arguments = (q, k, v, out, score, value, kv_group, float(scale), key_mask, window)
    if chosen == "naive":
        return naive_rank_space(*arguments)
    if chosen == "torch":
        return stream_rank_space(*arguments)
    from flashsvd.kernels.rank_space.launch import launch_rank_space

    return launch_rank_space(*arguments)


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int,
    scale: float,
    key_mask: torch.Tensor | None,
) -> tuple[int, int, int]:
    """The output's shape, once every argument but `out` is known to fit."""
    for name, layout in (("score", score), ("value", value)):
        if not isinstance(layout, HeadLayout):
            raise InputError(f"{name} must be a HeadLayout, got {type(layout).__name__}")
        if layout.shared:
            raise InputError(
                f"{name} must give every head its own columns, got a shared layout; factor head by head"
            )
    if score.heads != value.heads:
        raise InputError(
            f"score and value must have as many heads, the kv heads, got {score.heads} and {value.heads}"
        )
    if not isinstance(kv_group, int) or isinstance(kv_group, bool) or kv_group < 1:
        raise InputError(f"kv_group must be a whole number of at least 1, got {kv_group!r}")
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"scale must be a finite number above 0, got {scale}; absorb a sign into q")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_activation(name, tensor)
    if q.dim() != 3:
        raise InputError(f"q must be [batch, sequence, width], got {list(q.shape)}")
    batch, seq = q.shape[:2]
    check_tensor("q", q, (batch, seq, kv_group * score.p_width), q, like_name="q")
    check_tensor("k", k, (batch, seq, score.p_width), q, like_name="q")
    check_tensor("v", v, (batch, seq, value.p_width), q, like_name="q")
    if key_mask is not None:
        check_key_mask(key_mask, q, like_name="q")
    return batch, seq, kv_group * value.p_width


def _check_out(
    out: torch.Tensor,
    shape: tuple[int, int, int],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    same_ranks: bool,
) -> None:
    check_tensor("out", out, shape, q, like_name="q")
    check_activation("out", out)
    for name, tensor in (("k", k), ("v", v)):
        if may_overlap(out, tensor):
            raise InputError(
                f"out shares memory with {name}, which is read to the end; pass q or other memory"
            )
    if not may_overlap(out, q):
        return
    if out.data_ptr() != q.data_ptr() or out.stride() != q.stride():
        raise InputError("out shares memory with q but is not q; pass q itself or other memory")
    if not same_ranks:
        raise InputError(
            "out may be q only where score and value have the same ranks, as a head's output then takes that "
            "head's columns of q alone; pass other memory"
        )
