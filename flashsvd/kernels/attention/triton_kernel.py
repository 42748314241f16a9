"""FlashSVD attention in Triton: tiles of q, k and v rebuilt on chip from P and the head factors, online
softmax.

Source: FlashSVD, arXiv 2508.01506 (the streaming of factors), FlashAttention-2, arXiv 2307.08691 (the
softmax).

Letters in shape comments: BM query rows and BN keys of a tile, R rows of either, h head dim, BH that dim
padded to a power of two, r rank of one head, BR ranks of a tile.
"""

# mypy: allow-untyped-defs
# Triton reads its own annotations: a parameter is a tensor, a pointer or a number as the call has it.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _span(table, head, FACTORED: tl.constexpr, ALIGN: tl.constexpr, HEAD_DIM: tl.constexpr):
    """First column of P, first row of U and rank of one head; a dense head is h columns with no factor."""
    if FACTORED:
        row = table + head * 3
        # The table holds plain numbers: without these promises every load would be one element wide.
        p_start = tl.multiple_of(tl.load(row), ALIGN)
        u_start = tl.multiple_of(tl.load(row + 1), ALIGN)
        rank = tl.multiple_of(tl.load(row + 2), ALIGN)
        return p_start, u_start, rank
    else:
        return head * HEAD_DIM, head * 0, head * 0 + HEAD_DIM


@triton.jit
def _factor(u, stride_u, first, rank, BLOCK_R: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_H: tl.constexpr):
    """Ranks first to first + BR of one head's factor; zero beyond its rank and beyond h."""
    # [BR]
    r = first + tl.arange(0, BLOCK_R)
    # [BH]
    cols = tl.arange(0, BLOCK_H)
    inside = (r[:, None] < rank) & (cols[None, :] < HEAD_DIM)
    # [BR, BH]
    return tl.load(u + r[:, None] * stride_u + cols[None, :], mask=inside, other=0.0)


@triton.jit
def _bias(bias, head, HAS_BIAS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_H: tl.constexpr):
    """One head's bias in fp32, or zeros."""
    # [BH]
    cols = tl.arange(0, BLOCK_H)
    if HAS_BIAS:
        return tl.load(bias + head * HEAD_DIM + cols, mask=cols < HEAD_DIM, other=0.0).to(tl.float32)
    else:
        return tl.zeros([BLOCK_H], tl.float32)


@triton.jit
def _rebuild(
    p,
    stride_s,
    rows_left,
    u,
    stride_u,
    rank,
    factor,
    bias,
    FACTORED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Tile [R, BH] of one head, P·U + b rounded to the inputs' dtype; `p` and `u` point at its first row."""
    dtype = p.dtype.element_ty
    # [R]
    rows = tl.arange(0, ROWS)
    row_ok = rows[:, None] < rows_left
    if FACTORED:
        # [BR]
        r = tl.arange(0, BLOCK_R)
        # [R, BR]
        p_at = p + rows[:, None] * stride_s + r[None, :]
        if ONE_PASS:
            # [R, BR]
            p_tile = tl.load(p_at, mask=row_ok & (r[None, :] < rank), other=0.0)
            # [R, BH]
            y = tl.dot(p_tile, factor, input_precision="ieee")
        else:
            # [R, BH]
            y = tl.zeros([ROWS, BLOCK_H], tl.float32)
            for first in range(0, rank, BLOCK_R):
                # [R, BR]
                p_tile = tl.load(p_at + first, mask=row_ok & (first + r[None, :] < rank), other=0.0)
                # [BR, BH]
                u_tile = _factor(u, stride_u, first, rank, BLOCK_R, HEAD_DIM, BLOCK_H)
                y = tl.dot(p_tile, u_tile, y, input_precision="ieee")
    else:
        # [BH]
        cols = tl.arange(0, BLOCK_H)
        inside = row_ok & (cols[None, :] < HEAD_DIM)
        # [R, BH]
        y = tl.load(p + rows[:, None] * stride_s + cols[None, :], mask=inside, other=0.0)
    if HAS_BIAS:
        y = y + bias[None, :]
    return y.to(dtype)


@triton.jit
def attention_kernel(
    q_p,
    q_u,
    q_bias,
    q_table,
    q_stride_b,
    q_stride_s,
    q_stride_u,
    k_p,
    k_u,
    k_bias,
    k_table,
    k_stride_b,
    k_stride_s,
    k_stride_u,
    v_p,
    v_u,
    v_bias,
    v_table,
    v_stride_b,
    v_stride_s,
    v_stride_u,
    key_mask,
    mask_stride_b,
    out,
    out_stride_b,
    out_stride_s,
    seq,
    heads,
    scale_log2,
    GROUP: tl.constexpr,
    HAS_MASK: tl.constexpr,
    Q_FACTORED: tl.constexpr,
    Q_HAS_BIAS: tl.constexpr,
    Q_ALIGN: tl.constexpr,
    Q_ONE_PASS: tl.constexpr,
    Q_BLOCK_R: tl.constexpr,
    K_FACTORED: tl.constexpr,
    K_HAS_BIAS: tl.constexpr,
    K_ALIGN: tl.constexpr,
    K_ONE_PASS: tl.constexpr,
    K_BLOCK_R: tl.constexpr,
    V_FACTORED: tl.constexpr,
    V_HAS_BIAS: tl.constexpr,
    V_ALIGN: tl.constexpr,
    V_ONE_PASS: tl.constexpr,
    V_BLOCK_R: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per query block of one head of one sequence; the query block runs fastest in the 1-d grid.

    `scale_log2` is scale·log2(e), so that exp2 serves for exp. out is [B, S, H*h] with last stride 1.
    """
    blocks = tl.cdiv(seq, BLOCK_M)
    pid = tl.program_id(0)
    m0 = (pid % blocks) * BLOCK_M
    head = (pid // blocks) % heads
    kv_head = head // GROUP
    b = (pid // blocks // heads).to(tl.int64)

    q_start, q_u_start, q_rank = _span(q_table, head, Q_FACTORED, Q_ALIGN, HEAD_DIM)
    k_start, k_u_start, k_rank = _span(k_table, kv_head, K_FACTORED, K_ALIGN, HEAD_DIM)
    v_start, v_u_start, v_rank = _span(v_table, kv_head, V_FACTORED, V_ALIGN, HEAD_DIM)
    q_p += b * q_stride_b + m0.to(tl.int64) * q_stride_s + q_start
    k_p += b * k_stride_b + k_start
    v_p += b * v_stride_b + v_start
    q_u += q_u_start * q_stride_u
    k_u += k_u_start * k_stride_u
    v_u += v_u_start * v_stride_u
    if HAS_MASK:
        key_mask += b * mask_stride_b

    # [BR, BH] each
    q_factor = 0
    if Q_FACTORED and Q_ONE_PASS:
        q_factor = _factor(q_u, q_stride_u, 0, q_rank, Q_BLOCK_R, HEAD_DIM, BLOCK_H)
    k_factor = 0
    if K_FACTORED and K_ONE_PASS:
        k_factor = _factor(k_u, k_stride_u, 0, k_rank, K_BLOCK_R, HEAD_DIM, BLOCK_H)
    v_factor = 0
    if V_FACTORED and V_ONE_PASS:
        v_factor = _factor(v_u, v_stride_u, 0, v_rank, V_BLOCK_R, HEAD_DIM, BLOCK_H)
    # [BH] each
    q_b = _bias(q_bias, head, Q_HAS_BIAS, HEAD_DIM, BLOCK_H)
    k_b = _bias(k_bias, kv_head, K_HAS_BIAS, HEAD_DIM, BLOCK_H)
    v_b = _bias(v_bias, kv_head, V_HAS_BIAS, HEAD_DIM, BLOCK_H)

    # [BM, BH]
    q = _rebuild(
        q_p,
        q_stride_s,
        seq - m0,
        q_u,
        q_stride_u,
        q_rank,
        q_factor,
        q_b,
        Q_FACTORED,
        Q_HAS_BIAS,
        Q_ONE_PASS,
        Q_BLOCK_R,
        BLOCK_M,
        HEAD_DIM,
        BLOCK_H,
    )
    # [BM], finite: against -inf, a block with no allowed key would give exp2(-inf + inf) = NaN.
    pivot = tl.full([BLOCK_M], -1.0e30, tl.float32)
    # [BM]
    total = tl.zeros([BLOCK_M], tl.float32)
    # [BM, BH]
    acc = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    for n0 in range(0, seq, BLOCK_N):
        # [BN, BH]
        k = _rebuild(
            k_p,
            k_stride_s,
            seq - n0,
            k_u,
            k_stride_u,
            k_rank,
            k_factor,
            k_b,
            K_FACTORED,
            K_HAS_BIAS,
            K_ONE_PASS,
            K_BLOCK_R,
            BLOCK_N,
            HEAD_DIM,
            BLOCK_H,
        )
        # [BM, BN]
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        # [BN]
        n = n0 + tl.arange(0, BLOCK_N)
        allowed = n < seq
        if HAS_MASK:
            allowed = allowed & (tl.load(key_mask + n, mask=allowed, other=0) != 0)
        scores = tl.where(allowed[None, :], scores, float("-inf"))
        # [BM]
        new_pivot = tl.maximum(pivot, tl.max(scores, 1))
        shrink = tl.exp2(pivot - new_pivot)
        # [BM, BN]
        weights = tl.exp2(scores - new_pivot[:, None])
        total = total * shrink + tl.sum(weights, 1)
        # [BN, BH]
        v = _rebuild(
            v_p,
            v_stride_s,
            seq - n0,
            v_u,
            v_stride_u,
            v_rank,
            v_factor,
            v_b,
            V_FACTORED,
            V_HAS_BIAS,
            V_ONE_PASS,
            V_BLOCK_R,
            BLOCK_N,
            HEAD_DIM,
            BLOCK_H,
        )
        if v.dtype == tl.float32:
            # A sum of block sums rounds less than one chain over all keys (2.5x the error of plain torch on an
            # H200 at S = 1025, above the gate). By fma, as dot + acc would be folded back into the chain.
            acc = tl.fma(acc, shrink[:, None], tl.dot(weights, v, input_precision="ieee"))
        else:
            acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        pivot = new_pivot
        # The pointers move along, as n0 times a stride may not fit 32 bits.
        k_p += BLOCK_N * k_stride_s
        v_p += BLOCK_N * v_stride_s

    # A row that saw no key has acc = 0 and total = 0, and stays 0.
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    # [BM]
    rows = tl.arange(0, BLOCK_M)
    # [BH]
    cols = tl.arange(0, BLOCK_H)
    out += b * out_stride_b + m0.to(tl.int64) * out_stride_s + head * HEAD_DIM
    inside = (rows[:, None] < seq - m0) & (cols[None, :] < HEAD_DIM)
    tl.store(out + rows[:, None] * out_stride_s + cols[None, :], acc.to(out.dtype.element_ty), mask=inside)
