"""Attention of one new token per sequence over a cache, in Triton: normed, turned, appended and attended.

A program takes a kv head of a sequence and a share of its keys; of the programs of one head, the one that is done last
puts their parts together, in order. The queries of a kv head are rows of one tile.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from flashsvd.kernels.step.chain import last_of, wait


@triton.jit
def _projected(
    heads,
    bias,
    column,
    inside,
    share_stride,
    DTYPE: tl.constexpr,
    SHARES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Columns of q, k or v: the sum of what the shares left, and the bias, rounded as a linear's output is."""
    y = tl.load(heads + column, mask=inside, other=0.0)
    for share in tl.static_range(1, SHARES):
        y += tl.load(heads + column + share * share_stride, mask=inside, other=0.0)
    if HAS_BIAS:
        y += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    return y.to(DTYPE).to(tl.float32)


@triton.jit
def _turned(
    heads, bias, norm, cos, sin, column, d, inside, share_stride, eps,
    D: tl.constexpr, DTYPE: tl.constexpr, ROTARY: tl.constexpr, HEAD_NORM: tl.constexpr, SHARES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Heads [.., BD] of q or k from their columns: RMS norm over D, then turned by cos and sin; in DTYPE."""
    y = _projected(heads, bias, column + d, inside, share_stride, DTYPE, SHARES, HAS_BIAS)
    if ROTARY:
        HALF: tl.constexpr = D // 2
        other = tl.where(d < HALF, d + HALF, d - HALF)
        # Read again instead of moved between threads.
        z = _projected(heads, bias, column + other, inside, share_stride, DTYPE, SHARES, HAS_BIAS)
    if HEAD_NORM:
        rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(y * y, 1) / D + eps))[:, None]
        y = (y * rstd * tl.load(norm + d, mask=d < D, other=0.0).to(tl.float32)).to(DTYPE).to(tl.float32)
    if ROTARY:
        if HEAD_NORM:
            z = (
                (z * rstd * tl.load(norm + other, mask=d < D, other=0.0).to(tl.float32))
                .to(DTYPE)
                .to(tl.float32)
            )
        y = y * cos + tl.where(d < HALF, -z, z) * sin
    return y.to(DTYPE)


@triton.jit
def _one_query(
    q, m, norm, acc, k_tile, v_tile, keys, values, lo, hi, log2, t, d, dv,
    D: tl.constexpr, DV: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys lo to hi for one query q [1, BD], their first tile given. Weights stay with the threads
    that hold their keys and values: no tile changes its layout."""
    top, total, sums = tl.max(m, 0), tl.sum(norm, 0), tl.sum(acc, 0)
    for at in range(lo, hi, BT):
        inside = at + t < hi
        later = (at + BT + t)[:, None]
        # [BT]
        score = tl.sum(k_tile.to(tl.float32) * q.to(tl.float32), 1) * log2
        k_tile = tl.load(keys + later * D + d, mask=(later < hi) & (d < D), other=0.0)
        score = tl.where(inside, score, -1e30)
        higher = tl.maximum(top, tl.max(score, 0))
        weight = tl.where(inside, tl.exp2(score - higher), 0.0)
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weight, 0)
        sums = sums * shrink + tl.sum(weight[:, None] * v_tile.to(tl.float32), 0)
        v_tile = tl.load(values + later * DV + dv, mask=(later < hi) & (dv < DV), other=0.0)
        top = higher
    return tl.zeros_like(m) + top, tl.zeros_like(norm) + total, sums[None, :]


@triton.jit
def _group(
    q, m, norm, acc, k_tile, v_tile, keys, values, lo, hi, log2, t, d, dv,
    D: tl.constexpr, DV: tl.constexpr, BT: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same for a group of queries q [BG, BD], on the matrix units."""
    for at in range(lo, hi, BT):
        inside = (at + t < hi)[None, :]
        later = (at + BT + t)[:, None]
        # [BG, BT]
        score = tl.where(inside, tl.dot(q, tl.trans(k_tile), input_precision=PRECISION) * log2, -1e30)
        k_tile = tl.load(keys + later * D + d, mask=(later < hi) & (d < D), other=0.0)
        top = tl.maximum(m, tl.max(score, 1))
        weight = tl.where(inside, tl.exp2(score - top[:, None]), 0.0)
        shrink = tl.exp2(m - top)
        norm = norm * shrink + tl.sum(weight, 1)
        acc = tl.dot(weight.to(DTYPE), v_tile, acc * shrink[:, None], input_precision=PRECISION)
        v_tile = tl.load(values + later * DV + dv, mask=(later < hi) & (dv < DV), other=0.0)
        m = top
    return m, norm, acc


@triton.jit
def attend_kernel(
    heads,
    bias,
    q_norm,
    k_norm,
    k_cache,
    v_cache,
    cos,
    sin,
    place,
    first,
    out,
    parts,
    arrived,
    batch_stride,
    share_stride,
    k_at,
    v_at,
    capacity,
    window,
    scale,
    eps,
    HK: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BG: tl.constexpr,
    BD: tl.constexpr,
    BV: tl.constexpr,
    BT: tl.constexpr,
    SPLITS: tl.constexpr,
    SHARES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROTARY: tl.constexpr,
    HEAD_NORM: tl.constexpr,
    CHAINED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Programs (sequence · HK + kv head, share of its keys): `flashsvd.kernels.step.instructions.Attend`.

    parts fp32 [batch·HK, SPLITS, GROUP, DV + 2], arrived int32 [batch·HK], zero before and after; window -1: all keys.
    """
    DTYPE: tl.constexpr = k_cache.dtype.element_ty
    pair, split = tl.program_id(0), tl.program_id(1)
    b, head = pair // HK, pair % HK
    g, t = tl.arange(0, BG), tl.arange(0, BT)
    d, dv = tl.arange(0, BD)[None, :], tl.arange(0, BV)[None, :]
    in_d, in_v = d < D, dv < DV
    # What is in the cache, and how far it goes, was there when the step began: it is asked for before the wait.
    now = tl.load(place)
    start = tl.load(first + b)
    if ROTARY:
        turn_at = (now - start) * D + d
        c = tl.load(cos + turn_at, mask=in_d, other=0.0)
        s = tl.load(sin + turn_at, mask=in_d, other=0.0)
    else:
        c = tl.zeros([1, BD], tl.float32)
        s = c
    if window >= 0:
        start = tl.maximum(start, now - window)
    span = tl.cdiv(tl.cdiv(now - start, SPLITS), BT) * BT
    lo = start + split * span
    hi = tl.minimum(lo + span, now)
    # Caches of many sequences hold more than 2^31 numbers.
    keys = k_cache + pair.to(tl.int64) * capacity * D
    values = v_cache + pair.to(tl.int64) * capacity * DV
    # [BT, BD], [BT, BV]
    there = (lo + t < hi)[:, None]
    k_tile = tl.load(keys + (lo + t)[:, None] * D + d, mask=there & in_d, other=0.0)
    v_tile = tl.load(values + (lo + t)[:, None] * DV + dv, mask=there & in_v, other=0.0)
    # exp2 is the hardware's own.
    log2 = scale * 1.4426950408889634
    wait(CHAINED, capacity)
    source = heads + b * batch_stride
    # [BG, BD]; rows past the group repeat its last query.
    which = (head * GROUP + tl.minimum(g, GROUP - 1)) * D
    q = _turned(
        source, bias, q_norm, c, s, which[:, None], d, in_d, share_stride, eps,
        D, DTYPE, ROTARY, HEAD_NORM, SHARES, HAS_BIAS,
    )  # fmt: skip
    # All shares make k and v, one of them keeps and counts them: a branch would ask for them after q.
    k = _turned(
        source, bias, k_norm, c, s, k_at + head * D, d, in_d, share_stride, eps,
        D, DTYPE, ROTARY, HEAD_NORM, SHARES, HAS_BIAS,
    )  # fmt: skip
    v = _projected(source, bias, v_at + head * DV + dv, in_v, share_stride, DTYPE, SHARES, HAS_BIAS)
    own = split == 0
    tl.store(keys + now * D + d, k, mask=in_d & (d * 0 + split == 0))
    tl.store(values + now * DV + dv, v.to(DTYPE), mask=in_v & (dv * 0 + split == 0))
    # [BG]
    m = tl.where(own, tl.sum(q.to(tl.float32) * k.to(tl.float32), 1) * log2, -1e30)
    norm = tl.zeros([BG], tl.float32) + tl.where(own, 1.0, 0.0)
    acc = tl.zeros([BG, BV], tl.float32) + tl.where(own, v, 0.0)
    if BG == 1:
        m, norm, acc = _one_query(
            q, m, norm, acc, k_tile, v_tile, keys, values, lo, hi, log2, t, d, dv, D, DV, BT
        )
    else:
        m, norm, acc = _group(
            q, m, norm, acc, k_tile, v_tile, keys, values, lo, hi, log2, t, d, dv, D, DV, BT, DTYPE, PRECISION
        )
    in_g = g < GROUP
    result = out + (b * HK + head) * (GROUP * DV)
    if SPLITS == 1:
        done = acc / norm[:, None]
        tl.store(result + g[:, None] * DV + dv, done.to(DTYPE), mask=in_g[:, None] & in_v)
    else:
        SIZE: tl.constexpr = GROUP * (DV + 2)
        mine = parts + (pair * SPLITS + split) * SIZE
        tl.store(mine + g[:, None] * DV + dv, acc, mask=in_g[:, None] & in_v)
        tl.store(mine + GROUP * DV + g, m, mask=in_g)
        tl.store(mine + GROUP * (DV + 1) + g, norm, mask=in_g)
        if last_of(arrived + pair, SPLITS):
            # All parts of a query at once: one after another, every one would wait for the L2 cache.
            one = parts + pair * (SPLITS * SIZE) + tl.arange(0, SPLITS) * SIZE
            for query in tl.static_range(GROUP):
                tops = tl.load(one + GROUP * DV + query, cache_modifier=".cg")
                norms = tl.load(one + GROUP * (DV + 1) + query, cache_modifier=".cg")
                sums = tl.load(one[:, None] + query * DV + dv, mask=in_v, other=0.0, cache_modifier=".cg")
                shrinks = tl.exp2(tops - tl.max(tops, 0))
                done = tl.sum(sums * shrinks[:, None], 0) / tl.sum(norms * shrinks, 0)
                tl.store(result + query * DV + dv, done[None, :].to(DTYPE), mask=in_v)
