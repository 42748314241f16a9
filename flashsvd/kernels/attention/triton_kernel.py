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

from flashsvd.kernels.ffn.triton_parts import load_tile


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
def _factor(
    u,
    row,
    rank,
    FACTORED: tl.constexpr,
    ONE_PASS: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One head's whole factor, [BR, BH], where one tile holds it; a stand-in elsewhere."""
    if FACTORED and ONE_PASS:
        return load_tile(u, row, 0, rank, HEAD_DIM, BLOCK_R, BLOCK_H, FULL, HEAD_DIM == BLOCK_H)
    else:
        return 0


@triton.jit
def _rebuild(
    p,
    p_row,
    rows_left,
    u,
    u_row,
    rank,
    factor,
    FACTORED: tl.constexpr,
    ONE_PASS: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Tile [R, BH] of one head, P·U in fp32 or the dense columns; `p` and `u` point at its first row.

    EVEN: the tile is full of rows; FULL: ranks are whole tiles. Neither needs a mask then.
    """
    if not FACTORED:
        return load_tile(p, p_row, 0, rows_left, HEAD_DIM, ROWS, BLOCK_H, EVEN, HEAD_DIM == BLOCK_H)
    elif ONE_PASS:
        # [R, BR]
        p_tile = load_tile(p, p_row, 0, rows_left, rank, ROWS, BLOCK_R, EVEN, FULL)
        return tl.dot(p_tile, factor, input_precision="ieee")
    else:
        # [R, BH]
        y = tl.zeros([ROWS, BLOCK_H], tl.float32)
        for first in range(0, rank, BLOCK_R):
            # [R, BR]
            p_tile = load_tile(p, p_row, first, rows_left, rank, ROWS, BLOCK_R, EVEN, FULL)
            # [BR, BH]
            u_tile = load_tile(
                u + first * u_row,
                u_row,
                0,
                rank - first,
                HEAD_DIM,
                BLOCK_R,
                BLOCK_H,
                FULL,
                HEAD_DIM == BLOCK_H,
            )
            y = tl.dot(p_tile, u_tile, y, input_precision="ieee")
        return y


@triton.jit
def _bias(bias, head, HEAD_DIM: tl.constexpr, BLOCK_H: tl.constexpr):
    """One head's bias in fp32, [1, BH]."""
    # [BH]
    cols = tl.arange(0, BLOCK_H)
    return tl.load(bias + head * HEAD_DIM + cols, mask=cols < HEAD_DIM, other=0.0).to(tl.float32)[None, :]


# Launches of any length or stride run one binary: what speeds loads up is promised by the constants below.
@triton.jit(
    do_not_specialize=[
        *(f"{letter}_stride_{of}" for letter in "qkv" for of in "bsu"),
        "out_stride_b",
        "out_stride_s",
        "seq",
        "heads",
    ]
)
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
    out,
    out_stride_b,
    out_stride_s,
    seq,
    heads,
    scale_log2,
    GROUP: tl.constexpr,
    HAS_MASK: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    STRIDE_ALIGN: tl.constexpr,
    Q_FACTORED: tl.constexpr,
    Q_HAS_BIAS: tl.constexpr,
    Q_ALIGN: tl.constexpr,
    Q_ONE_PASS: tl.constexpr,
    Q_FULL: tl.constexpr,
    Q_BLOCK_R: tl.constexpr,
    K_FACTORED: tl.constexpr,
    K_ALIGN: tl.constexpr,
    K_ONE_PASS: tl.constexpr,
    K_FULL: tl.constexpr,
    K_BLOCK_R: tl.constexpr,
    V_FACTORED: tl.constexpr,
    V_HAS_BIAS: tl.constexpr,
    V_ALIGN: tl.constexpr,
    V_ONE_PASS: tl.constexpr,
    V_FULL: tl.constexpr,
    V_BLOCK_R: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per query block of one head of one sequence; the query block runs fastest in the 1-d grid.

    Strides are in units of STRIDE_ALIGN elements. key_mask: bytes [B, S]. `scale_log2` is scale·log2(e), so
    that exp2 serves for exp. out is [B, S, H*h] with last stride 1. k has no bias here: q·bk is the same for
    every key of a row, which softmax does not see.
    """
    dtype = q_p.dtype.element_ty
    blocks = tl.cdiv(seq, BLOCK_M)
    pid = tl.program_id(0)
    m0 = (pid % blocks) * BLOCK_M
    head = (pid // blocks) % heads
    kv_head = head // GROUP
    b = (pid // blocks // heads).to(tl.int64)

    q_start, q_u_start, q_rank = _span(q_table, head, Q_FACTORED, Q_ALIGN, HEAD_DIM)
    k_start, k_u_start, k_rank = _span(k_table, kv_head, K_FACTORED, K_ALIGN, HEAD_DIM)
    v_start, v_u_start, v_rank = _span(v_table, kv_head, V_FACTORED, V_ALIGN, HEAD_DIM)
    q_row = q_stride_s * STRIDE_ALIGN
    k_row = k_stride_s * STRIDE_ALIGN
    v_row = v_stride_s * STRIDE_ALIGN
    out_row = out_stride_s * STRIDE_ALIGN
    q_u_row = q_stride_u * STRIDE_ALIGN
    k_u_row = k_stride_u * STRIDE_ALIGN
    v_u_row = v_stride_u * STRIDE_ALIGN
    q_p += b * q_stride_b * STRIDE_ALIGN + m0.to(tl.int64) * q_row + q_start
    k_p += b * k_stride_b * STRIDE_ALIGN + k_start
    v_p += b * v_stride_b * STRIDE_ALIGN + v_start
    out += b * out_stride_b * STRIDE_ALIGN + m0.to(tl.int64) * out_row + head * HEAD_DIM
    q_u += q_u_start * q_u_row
    k_u += k_u_start * k_u_row
    v_u += v_u_start * v_u_row
    if HAS_MASK:
        key_mask += b * seq

    # [BR, BH] each
    q_factor = _factor(q_u, q_u_row, q_rank, Q_FACTORED, Q_ONE_PASS, Q_FULL, Q_BLOCK_R, HEAD_DIM, BLOCK_H)
    k_factor = _factor(k_u, k_u_row, k_rank, K_FACTORED, K_ONE_PASS, K_FULL, K_BLOCK_R, HEAD_DIM, BLOCK_H)
    v_factor = _factor(v_u, v_u_row, v_rank, V_FACTORED, V_ONE_PASS, V_FULL, V_BLOCK_R, HEAD_DIM, BLOCK_H)

    # [BM, BH]
    q = _rebuild(
        q_p,
        q_row,
        seq - m0,
        q_u,
        q_u_row,
        q_rank,
        q_factor,
        Q_FACTORED,
        Q_ONE_PASS,
        Q_FULL,
        Q_BLOCK_R,
        EVEN_M,
        BLOCK_M,
        HEAD_DIM,
        BLOCK_H,
    )
    if Q_HAS_BIAS:
        q += _bias(q_bias, head, HEAD_DIM, BLOCK_H)
    # The loop scales after the maximum, which needs a scale above 0: q takes its sign, and is 0 where it is 0 (a
    # masked score of -inf times 0 would be NaN).
    q = (q * tl.where(scale_log2 > 0.0, 1.0, tl.where(scale_log2 < 0.0, -1.0, 0.0))).to(dtype)
    scale_log2 = tl.where(scale_log2 == 0.0, 1.0, tl.abs(scale_log2))
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
            k_row,
            seq - n0,
            k_u,
            k_u_row,
            k_rank,
            k_factor,
            K_FACTORED,
            K_ONE_PASS,
            K_FULL,
            K_BLOCK_R,
            EVEN_N,
            BLOCK_N,
            HEAD_DIM,
            BLOCK_H,
        ).to(dtype)
        # [BN, BH]; beside k and not after the softmax: 637 us against 646 at S = 4096 and rank 32, though 124 against
        # 120 at S = 512 and rank 40 (the shape is in tiles.py).
        v = _rebuild(
            v_p,
            v_row,
            seq - n0,
            v_u,
            v_u_row,
            v_rank,
            v_factor,
            V_FACTORED,
            V_ONE_PASS,
            V_FULL,
            V_BLOCK_R,
            EVEN_N,
            BLOCK_N,
            HEAD_DIM,
            BLOCK_H,
        ).to(dtype)
        # [BM, BN]
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if HAS_MASK or not EVEN_N:
            # [BN]
            n = n0 + tl.arange(0, BLOCK_N)
            allowed = n < seq
            if HAS_MASK:
                allowed = tl.load(key_mask + n, mask=allowed, other=0) != 0
            scores = tl.where(allowed[None, :], scores, float("-inf"))
        # [BM]; scaled after the maximum, so that scaling and subtracting are one instruction.
        new_pivot = tl.maximum(pivot, tl.max(scores, 1) * scale_log2)
        shrink = tl.exp2(pivot - new_pivot)
        # [BM, BN]
        weights = tl.exp2(tl.fma(scores, scale_log2, -new_pivot[:, None]))
        total = total * shrink + tl.sum(weights, 1)
        if dtype == tl.float32:
            # A sum of block sums rounds less than one chain over all keys (2.5x the error of plain torch on an
            # H200 at S = 1025, above the gate). By fma, as dot + acc would be folded back into the chain.
            acc = tl.fma(acc, shrink[:, None], tl.dot(weights, v, input_precision="ieee"))
        else:
            acc = tl.dot(weights.to(dtype), v, acc * shrink[:, None], input_precision="ieee")
        pivot = new_pivot
        # The pointers move along, as n0 times a stride may not fit 32 bits.
        k_p += BLOCK_N * k_row
        v_p += BLOCK_N * v_row

    # A row that saw no key has acc = 0 and total = 0, and stays 0.
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    if V_HAS_BIAS:
        # Once is enough, as weights sum to one.
        acc += tl.where(total > 0.0, 1.0, 0.0)[:, None] * _bias(v_bias, kv_head, HEAD_DIM, BLOCK_H)
    # [BM]
    rows = tl.arange(0, BLOCK_M)
    # [BH]
    cols = tl.arange(0, BLOCK_H)
    inside = (rows[:, None] < seq - m0) & (cols[None, :] < HEAD_DIM)
    tl.store(out + rows[:, None] * out_row + cols[None, :], acc.to(dtype), mask=inside)
