"""Rank-space attention in Triton: flash attention whose head dims are ranks, each head with its own.

Source: FlashAttention-2, arXiv 2307.08691; that q, k and v need not be rebuilt is derived in this package's
docstring.

Letters in shape comments: BM query rows and BN keys of a tile, BS columns of q and k and BV columns of v in a
tile.
"""

# mypy: allow-untyped-defs
# Triton reads its own annotations: a parameter is a tensor, a pointer or a number as the call has it.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(
    at, stride, rows_left, cols_left, EVEN: tl.constexpr, FULL: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    """Tile [R, C] at pointer `at`; zero beyond `rows_left` unless EVEN and beyond `cols_left` unless FULL."""
    # [R]
    rows = tl.arange(0, R)
    # [C]
    cols = tl.arange(0, C)
    # [R, C]
    at = at + rows[:, None] * stride + cols[None, :]
    if EVEN and FULL:
        return tl.load(at)
    elif EVEN:
        return tl.load(at, mask=cols[None, :] < cols_left, other=0.0)
    elif FULL:
        return tl.load(at, mask=rows[:, None] < rows_left, other=0.0)
    else:
        return tl.load(at, mask=(rows[:, None] < rows_left) & (cols[None, :] < cols_left), other=0.0)


# Launches of any length or stride run one binary: what speeds loads up is promised by the constants below.
@triton.jit(
    do_not_specialize=[
        "q_stride_b",
        "q_stride_s",
        "k_stride_b",
        "k_stride_s",
        "v_stride_b",
        "v_stride_s",
        "out_stride_b",
        "out_stride_s",
        "seq",
        "keys",
        "heads",
        "window",
    ]
)
def rank_space_kernel(
    q,
    q_stride_b,
    q_stride_s,
    k,
    k_stride_b,
    k_stride_s,
    v,
    v_stride_b,
    v_stride_s,
    out,
    out_stride_b,
    out_stride_s,
    key_mask,
    span_table,
    seq,
    keys,
    heads,
    scale_log2,
    window,
    GROUP: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    CAUSAL: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    FULL_SCORE: tl.constexpr,
    FULL_VALUE: tl.constexpr,
    SCORE_ALIGN: tl.constexpr,
    VALUE_ALIGN: tl.constexpr,
    STRIDE_ALIGN: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SCORE: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    """One program per query block of one head of one sequence; the query block runs fastest in the 1-d grid,
    so the programs that share a head's keys and values run together and find them in L2.

    Strides are in units of STRIDE_ALIGN elements. span_table: int32 [kv heads, 4], first column and rank for
    scores, then for values. key_mask: bytes [B, T]. `scale_log2` is scale·log2(e), above 0, so that exp2
    serves for exp. With HAS_WINDOW only keys within `window` places of a query count, with CAUSAL only those not behind
    it, and only their blocks are read. The last query stands where the last of T keys does.

    `out` may be q, in the same layout: this program alone reads its block of q, all of it before the store at
    the end (keys pass through shared memory in between, behind a barrier for all threads).
    """
    blocks = tl.cdiv(seq, BLOCK_M)
    pid = tl.program_id(0)
    block = pid % blocks
    if CAUSAL:
        # The longest rows first, so that none of them is left when all others are done.
        block = blocks - 1 - block
    m0 = block * BLOCK_M
    head = (pid // blocks) % heads
    kv_head = head // GROUP
    b = (pid // blocks // heads).to(tl.int64)

    # The table holds plain numbers. Without these promises every load is 2 bytes wide: 148 us (with its launch) for
    # 45 at [16, 512], 12 heads of rank 40, bf16, H200.
    spans = span_table + kv_head * 4
    score_start = tl.multiple_of(tl.load(spans), SCORE_ALIGN)
    score_rank = tl.multiple_of(tl.load(spans + 1), SCORE_ALIGN)
    value_start = tl.multiple_of(tl.load(spans + 2), VALUE_ALIGN)
    value_rank = tl.multiple_of(tl.load(spans + 3), VALUE_ALIGN)
    # Every rank comes GROUP times in q and out, so a kv head's first query head starts at GROUP times its start.
    member = head % GROUP
    q_start = score_start * GROUP + member * score_rank
    out_start = value_start * GROUP + member * value_rank
    q_row = q_stride_s * STRIDE_ALIGN
    k_row = k_stride_s * STRIDE_ALIGN
    v_row = v_stride_s * STRIDE_ALIGN
    out_row = out_stride_s * STRIDE_ALIGN
    q += b * q_stride_b * STRIDE_ALIGN + m0.to(tl.int64) * q_row + q_start
    k += b * k_stride_b * STRIDE_ALIGN + score_start
    v += b * v_stride_b * STRIDE_ALIGN + value_start
    out += b * out_stride_b * STRIDE_ALIGN + m0.to(tl.int64) * out_row + out_start
    if HAS_MASK:
        key_mask += b * keys

    # The tile is the next power of two above the rank. For rank 40 a tile of 32 columns and one of 16 in place of
    # one of 64 gained nothing (45.1 us against 45.3 on an H200), and Triton 3.6 on sm_90 gave wrong rows and
    # illegal addresses for [BN, 16] operands loaded in short vectors.
    q_tile = 0
    if ONE_PASS:
        # [BM, BS]
        q_tile = _tile(q, q_row, seq - m0, score_rank, EVEN_M, FULL_SCORE, BLOCK_M, BLOCK_SCORE)
    # [BM], finite: against -inf, a block with no allowed key would give exp2(-inf + inf) = NaN.
    pivot = tl.full([BLOCK_M], -1.0e30, tl.float32)
    # [BM]
    total = tl.zeros([BLOCK_M], tl.float32)
    # [BM, BV]
    acc = tl.zeros([BLOCK_M, BLOCK_VALUE], tl.float32)
    # Left to Triton to pipeline: issuing the next block's scores before this block's second dot by hand took
    # 34.8 us against 32.2 at [16, 512], rank 32.
    # Of the block's first query, among the keys.
    place = m0
    first_key = 0
    past_keys = keys
    if CAUSAL:
        place += keys - seq
        past_keys = tl.minimum(place + BLOCK_M, keys)
    if HAS_WINDOW:
        first_key = tl.maximum(place - window, 0) // BLOCK_N * BLOCK_N
        if not CAUSAL:
            past_keys = tl.minimum(place + BLOCK_M + window, keys)
        k += first_key.to(tl.int64) * k_row
        v += first_key.to(tl.int64) * v_row
    # Blocks that all queries see are read first and without a mask, if no window cuts them.
    for part in tl.static_range(2 if CAUSAL and not HAS_WINDOW else 1):
        start = first_key
        stop = past_keys
        if CAUSAL and not HAS_WINDOW:
            past_whole = (place + 1) // BLOCK_N * BLOCK_N
            if part == 0:
                stop = past_whole
            else:
                start = past_whole
        for n0 in range(start, stop, BLOCK_N):
            if ONE_PASS:
                # [BN, BS]
                k_tile = _tile(
                    k,
                    k_row,
                    keys - n0,
                    score_rank,
                    EVEN_N or (CAUSAL and not HAS_WINDOW and part == 0),
                    FULL_SCORE,
                    BLOCK_N,
                    BLOCK_SCORE,
                )
                # [BM, BN]
                scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
            else:
                # [BM, BN]
                scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
                for first in range(0, score_rank, BLOCK_SCORE):
                    left = score_rank - first
                    # [BM, BS]
                    q_part = _tile(q + first, q_row, seq - m0, left, EVEN_M, FULL_SCORE, BLOCK_M, BLOCK_SCORE)
                    # [BN, BS]
                    k_part = _tile(
                        k + first,
                        k_row,
                        keys - n0,
                        left,
                        EVEN_N or (CAUSAL and not HAS_WINDOW and part == 0),
                        FULL_SCORE,
                        BLOCK_N,
                        BLOCK_SCORE,
                    )
                    scores = tl.dot(q_part, tl.trans(k_part), scores, input_precision="ieee")
            if HAS_MASK or not (EVEN_N or (CAUSAL and not HAS_WINDOW and part == 0)):
                # [BN]
                n = n0 + tl.arange(0, BLOCK_N)
                allowed = n < keys
                if HAS_MASK:
                    allowed = tl.load(key_mask + n, mask=allowed, other=0) != 0
                scores = tl.where(allowed[None, :], scores, float("-inf"))
            if HAS_WINDOW or (CAUSAL and part == 1):
                # [BM], [BN]
                row = place + tl.arange(0, BLOCK_M)
                key = n0 + tl.arange(0, BLOCK_N)
                if CAUSAL:
                    scores = tl.where(row[:, None] >= key[None, :], scores, float("-inf"))
                    if HAS_WINDOW:
                        scores = tl.where((row - window)[:, None] <= key[None, :], scores, float("-inf"))
                else:
                    near = tl.abs(row[:, None] - key[None, :]) <= window
                    scores = tl.where(near, scores, float("-inf"))
            # [BM]; scaled after the maximum, so that scaling and subtracting are one instruction.
            new_pivot = tl.maximum(pivot, tl.max(scores, 1) * scale_log2)
            shrink = tl.exp2(pivot - new_pivot)
            # [BM, BN]
            weights = tl.exp2(tl.fma(scores, scale_log2, -new_pivot[:, None]))
            total = total * shrink + tl.sum(weights, 1)
            # [BN, BV]
            v_tile = _tile(
                v,
                v_row,
                keys - n0,
                value_rank,
                EVEN_N or (CAUSAL and not HAS_WINDOW and part == 0),
                FULL_VALUE,
                BLOCK_N,
                BLOCK_VALUE,
            )
            if v_tile.dtype == tl.float32:
                # A sum of block sums rounds less than one chain over all keys. By fma, as dot + acc would be folded
                # back into the chain; see attention/triton_kernel.py for the numbers.
                acc = tl.fma(acc, shrink[:, None], tl.dot(weights, v_tile, input_precision="ieee"))
            else:
                acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * shrink[:, None], input_precision="ieee")
            pivot = new_pivot
            # The pointers move along, as n0 times a stride may not fit 32 bits.
            k += BLOCK_N * k_row
            v += BLOCK_N * v_row

    # A row that saw no key has acc = 0 and total = 0, and stays 0.
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    # [BM]
    rows = tl.arange(0, BLOCK_M)
    # [BV]
    cols = tl.arange(0, BLOCK_VALUE)
    inside = (rows[:, None] < seq - m0) & (cols[None, :] < value_rank)
    tl.store(out + rows[:, None] * out_row + cols[None, :], acc.to(out.dtype.element_ty), mask=inside)
