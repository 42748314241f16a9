"""Rotary positions in Triton: q and k in one launch, one read and one write of each."""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _turn(x, head, s, i, inside, cos, sin, stride, HALF: tl.constexpr, HEADS: tl.constexpr):
    """Turns heads `head` to head + HEADS of x [S, H·h] where they are. s [BM], i [BH], cos and sin [BM, 1, BH]."""
    # [BM, G, BH]
    columns = (head + tl.arange(0, HEADS))[None, :, None] * (2 * HALF) + i[None, None, :]
    at = x + s[:, None, None] * stride + columns
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (first * cos - second * sin).to(x.dtype.element_ty), mask=inside)
    tl.store(at + HALF, (second * cos + first * sin).to(x.dtype.element_ty), mask=inside)


@triton.jit
def rotary_kernel(
    q,
    k,
    cos,
    sin,
    seq,
    blocks,
    q_batch_stride,
    q_stride,
    k_batch_stride,
    k_stride,
    cos_batch_stride,
    cos_stride,
    sin_batch_stride,
    sin_stride,
    HALF: tl.constexpr,
    Q_PROGRAMS: tl.constexpr,
    Q_GROUP: tl.constexpr,
    K_GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One program per BLOCK_M tokens of a sequence and group of heads, those of q first, then those of k.

    q [B, S, H·h], k [B, S, Hk·h], cos and sin [B, S, h] (a batch stride of 0 where they are [1, S, h]), h = 2·HALF;
    `blocks` of tokens per sequence.
    """
    b = tl.program_id(0) // blocks
    group = tl.program_id(1)
    # [BM]
    s = (tl.program_id(0) - b * blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    b = b.to(tl.int64)
    # [BH]
    i = tl.arange(0, BLOCK_H)
    # [BM, 1, BH]
    inside = (s < seq)[:, None, None] & (i < HALF)[None, None, :]
    cos_at = cos + b * cos_batch_stride + s[:, None, None] * cos_stride + i[None, None, :]
    sin_at = sin + b * sin_batch_stride + s[:, None, None] * sin_stride + i[None, None, :]
    c = tl.load(cos_at, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(sin_at, mask=inside, other=0.0).to(tl.float32)
    if group < Q_PROGRAMS:
        _turn(q + b * q_batch_stride, group * Q_GROUP, s, i, inside, c, d, q_stride, HALF, Q_GROUP)
    else:
        head = (group - Q_PROGRAMS) * K_GROUP
        _turn(k + b * k_batch_stride, head, s, i, inside, c, d, k_stride, HALF, K_GROUP)
