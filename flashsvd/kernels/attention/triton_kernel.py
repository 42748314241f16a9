"""FlashSVD attention in Triton: tiles of q, k and v rebuilt on chip from P and the head factors, online
softmax.

Source: FlashSVD, arXiv 2508.01506 (the streaming of factors), FlashAttention-2, arXiv 2307.08691 (the
softmax), RoFormer, arXiv 2104.09864 (the turn).

Letters in shape comments: BM query rows and BN keys of a tile, R rows of either, h head dim, BH that dim
padded to a power of two, BC columns of a part of q or k: all BH, or those of half a head where it is turned, r rank of
one head, BR ranks of a tile.

FLOPs of a tile of queries against a tile of keys: 4·BM·BN·h to score and to weigh, and 2·BN·h·(rk + rv) to rebuild k
and v, which is (rk + rv) / (2·BM) of it: half at ranks of 64 and 128 rows, 8 times as much at ranks of 1024. The turn
of k adds 3·BN·h, on other units. Heads that read one kv head are rows of one tile, so they share all of this.
"""

# mypy: allow-untyped-defs
# Triton reads its own annotations: a parameter is a tensor, a pointer or a number as the call has it.
from __future__ import annotations

import triton
import triton.language as tl

from flashsvd.kernels.attention.triton_parts import (
    bias_row,
    factor,
    load_rows,
    member_queries,
    queries,
    rebuild,
    span,
    turned,
)
from flashsvd.kernels.ffn.triton_parts import load_tile, store_tile


# Launches of any length or stride run one binary: what speeds loads up is promised by the constants below.
@triton.jit(
    do_not_specialize=[
        *(f"{letter}_stride_{of}" for letter in "qkv" for of in "bsu"),
        "out_stride_b",
        "out_stride_s",
        "seq",
        "keys",
        "heads",
        "window",
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
    cos,
    cos_stride_b,
    cos_stride_s,
    sin,
    sin_stride_b,
    sin_stride_s,
    out,
    out_stride_b,
    out_stride_s,
    seq,
    keys,
    heads,
    window,
    scale_log2,
    GROUP: tl.constexpr,
    MEMBERS: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    TURNED: tl.constexpr,
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
    K_HAS_BIAS: tl.constexpr,
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
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """One program per block of tokens, and MEMBERS heads of a group, of one sequence; the block runs fastest in the
    1-d grid. The rows of its tile are those heads of one token after another.

    Strides are in units of STRIDE_ALIGN elements, but those of cos and sin. key_mask: bytes [B, T]. `scale_log2` is
    scale·log2(e), so that exp2 serves for exp. cos, sin: [B, T, h] (a batch stride of 0 where they are [1, T, h]). out
    is [B, S, H*h] with last stride 1. k has no bias here unless TURNED: q·bk is the same for every key of a row, which
    softmax does not see. BLOCK_Q: rows of one head in a tile, BLOCK_M // MEMBERS padded to a power of two.
    """
    dtype = q_p.dtype.element_ty
    TOKENS: tl.constexpr = BLOCK_M // MEMBERS
    COLS: tl.constexpr = HEAD_DIM // 2 if TURNED else HEAD_DIM
    blocks = tl.cdiv(seq, TOKENS)
    pid = tl.program_id(0)
    block = pid % blocks
    if CAUSAL:
        # The longest rows first, so that none of them is left when all others are done.
        block = blocks - 1 - block
    m0 = block * TOKENS
    head = (pid // blocks) % (heads // MEMBERS) * MEMBERS
    kv_head = head // GROUP
    b = (pid // blocks // (heads // MEMBERS)).to(tl.int64)
    # Among the keys, of the first token and the last.
    place = keys - seq + m0
    last_place = keys - seq + tl.minimum(m0 + TOKENS, seq) - 1

    # Of the first head, where there are more.
    q_start, q_u_start, q_rank = span(q_table, head, Q_FACTORED, Q_ALIGN, HEAD_DIM)
    k_start, k_u_start, k_rank = span(k_table, kv_head, K_FACTORED, K_ALIGN, HEAD_DIM)
    v_start, v_u_start, v_rank = span(v_table, kv_head, V_FACTORED, V_ALIGN, HEAD_DIM)
    q_row = q_stride_s * STRIDE_ALIGN
    k_row = k_stride_s * STRIDE_ALIGN
    v_row = v_stride_s * STRIDE_ALIGN
    out_row = out_stride_s * STRIDE_ALIGN
    q_u_row = q_stride_u * STRIDE_ALIGN
    k_u_row = k_stride_u * STRIDE_ALIGN
    v_u_row = v_stride_u * STRIDE_ALIGN
    q_p += b * q_stride_b * STRIDE_ALIGN + m0.to(tl.int64) * q_row
    k_p += b * k_stride_b * STRIDE_ALIGN + k_start
    v_p += b * v_stride_b * STRIDE_ALIGN + v_start
    out += b * out_stride_b * STRIDE_ALIGN + m0.to(tl.int64) * out_row + head * HEAD_DIM
    k_u += k_u_start * k_u_row
    v_u += v_u_start * v_u_row
    if HAS_MASK:
        key_mask += b * keys
    cos_q = cos
    sin_q = sin
    if TURNED:
        cos += b * cos_stride_b
        sin += b * sin_stride_b
        cos_q = cos + place.to(tl.int64) * cos_stride_s
        sin_q = sin + place.to(tl.int64) * sin_stride_s

    # Keys that some row sees lie from first_key to past_key, and those that all see from first_whole to past_whole. All
    # but past_key start a tile.
    first_key = 0
    first_whole = 0
    past_key = keys
    past_whole = keys
    if CAUSAL:
        past_key = last_place + 1
        past_whole = (place + 1) // BLOCK_N * BLOCK_N
    elif HAS_WINDOW:
        past_key = tl.minimum(last_place + window + 1, keys)
        past_whole = tl.minimum(place + window + 1, keys) // BLOCK_N * BLOCK_N
    if HAS_WINDOW:
        first_key = tl.maximum(place - window, 0) // BLOCK_N * BLOCK_N
        first_whole = tl.cdiv(tl.maximum(last_place - window, 0), BLOCK_N) * BLOCK_N
        past_whole = tl.maximum(past_whole, first_whole)
        k_p += first_key.to(tl.int64) * k_row
        v_p += first_key.to(tl.int64) * v_row
        if TURNED:
            cos += first_key.to(tl.int64) * cos_stride_s
            sin += first_key.to(tl.int64) * sin_stride_s

    # [BR, BC] each
    q_factor, q_second_factor = factor(
        q_u + q_u_start * q_u_row,
        q_u_row,
        q_rank,
        Q_FACTORED,
        Q_ONE_PASS,
        TURNED,
        Q_FULL,
        Q_BLOCK_R,
        COLS,
        BLOCK_C,
    )
    k_factor, k_second_factor = factor(
        k_u, k_u_row, k_rank, K_FACTORED, K_ONE_PASS, TURNED, K_FULL, K_BLOCK_R, COLS, BLOCK_C
    )
    # [BR, BH]
    v_factor, _ = factor(
        v_u, v_u_row, v_rank, V_FACTORED, V_ONE_PASS, False, V_FULL, V_BLOCK_R, HEAD_DIM, BLOCK_H
    )

    # The loop scales after the maximum, which needs a scale above 0: q takes its sign, and is 0 where it is 0 (a
    # masked score of -inf times 0 would be NaN).
    sign = tl.where(scale_log2 > 0.0, 1.0, tl.where(scale_log2 < 0.0, -1.0, 0.0))
    scale_log2 = tl.where(scale_log2 == 0.0, 1.0, tl.abs(scale_log2))
    tokens_left = tl.minimum(seq - m0, TOKENS)
    # [BM, BC] each, the second a stand-in unless TURNED
    if MEMBERS == 1:
        q, q_second = queries(
            q_p + q_start,
            q_row,
            tokens_left,
            q_u + q_u_start * q_u_row,
            q_u_row,
            q_rank,
            q_factor,
            q_second_factor,
            q_bias,
            head,
            sign,
            cos_q,
            cos_stride_s,
            sin_q,
            sin_stride_s,
            Q_FACTORED,
            Q_HAS_BIAS,
            Q_ONE_PASS,
            TURNED,
            Q_FULL,
            Q_BLOCK_R,
            EVEN_M,
            BLOCK_M,
            HEAD_DIM,
            COLS,
            BLOCK_C,
        )
    elif Q_FACTORED:
        # Every head has a factor of its own, so they are rebuilt one by one, and become the rows of one tile by way of
        # the output, of which this program alone writes its block.
        for member in tl.range(0, MEMBERS, num_stages=1):
            start, u_start, rank = span(q_table, head + member, Q_FACTORED, Q_ALIGN, HEAD_DIM)
            at = q_u + u_start * q_u_row
            member_factor, member_second_factor = factor(
                at, q_u_row, rank, Q_FACTORED, Q_ONE_PASS, TURNED, Q_FULL, Q_BLOCK_R, COLS, BLOCK_C
            )
            part, second_part = queries(
                q_p + start,
                q_row,
                tokens_left,
                at,
                q_u_row,
                rank,
                member_factor,
                member_second_factor,
                q_bias,
                head + member,
                sign,
                cos_q,
                cos_stride_s,
                sin_q,
                sin_stride_s,
                Q_FACTORED,
                Q_HAS_BIAS,
                Q_ONE_PASS,
                TURNED,
                Q_FULL,
                Q_BLOCK_R,
                EVEN_M and BLOCK_Q == TOKENS,
                BLOCK_Q,
                HEAD_DIM,
                COLS,
                BLOCK_C,
            )
            at = out + member * HEAD_DIM
            store_tile(at, out_row, 0, part, tokens_left, COLS, BLOCK_Q, BLOCK_C)
            if TURNED:
                store_tile(at + COLS, out_row, 0, second_part, tokens_left, COLS, BLOCK_Q, BLOCK_C)
        tl.debug_barrier()
        q = load_rows(out, out_row, HEAD_DIM, tokens_left, MEMBERS, EVEN_M, BLOCK_M, COLS, BLOCK_C)
        q_second = 0
        if TURNED:
            at = out + COLS
            q_second = load_rows(at, out_row, HEAD_DIM, tokens_left, MEMBERS, EVEN_M, BLOCK_M, COLS, BLOCK_C)
        # No row of the result may be there before all of these are read.
        tl.debug_barrier()
    else:
        q, q_second = member_queries(
            q_p,
            q_row,
            tokens_left,
            q_bias,
            head,
            sign,
            cos_q,
            cos_stride_s,
            sin_q,
            sin_stride_s,
            Q_HAS_BIAS,
            TURNED,
            MEMBERS,
            EVEN_M,
            BLOCK_M,
            HEAD_DIM,
            COLS,
            BLOCK_C,
        )
    if K_HAS_BIAS:
        # [1, BC]
        k_bias_first = bias_row(k_bias, kv_head, 0, HEAD_DIM, COLS, BLOCK_C)
        k_bias_second = bias_row(k_bias, kv_head, COLS, HEAD_DIM, COLS, BLOCK_C)
    # [BM], finite: against -inf, a block with no allowed key would give exp2(-inf + inf) = NaN.
    pivot = tl.full([BLOCK_M], -1.0e30, tl.float32)
    # [BM]
    total = tl.zeros([BLOCK_M], tl.float32)
    # [BM, BH]
    acc = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    # Of the parts 0, 1 and 2 of the keys, all rows see all of 1, whose tiles are whole. Elsewhere places are compared.
    for part_of in tl.static_range(0 if HAS_WINDOW else 1, 3 if CAUSAL or HAS_WINDOW else 2):
        if part_of == 0:
            start = first_key
            stop = tl.minimum(first_whole, past_key)
        elif part_of == 1:
            start = first_whole
            stop = past_whole
        else:
            start = past_whole
            stop = past_key
        for n0 in range(start, stop, BLOCK_N):
            # [BN, BC] each
            k, k_second = rebuild(
                k_p,
                k_row,
                keys - n0,
                k_u,
                k_u_row,
                k_rank,
                k_factor,
                k_second_factor,
                K_FACTORED,
                K_ONE_PASS,
                TURNED,
                K_FULL,
                K_BLOCK_R,
                EVEN_N or ((CAUSAL or HAS_WINDOW) and part_of == 1),
                BLOCK_N,
                COLS,
                BLOCK_C,
            )
            if K_HAS_BIAS:
                k += k_bias_first
                k_second += k_bias_second
            if TURNED:
                # [BN, BC] each
                c = load_tile(
                    cos,
                    cos_stride_s,
                    0,
                    keys - n0,
                    COLS,
                    BLOCK_N,
                    BLOCK_C,
                    EVEN_N or ((CAUSAL or HAS_WINDOW) and part_of == 1),
                    COLS == BLOCK_C,
                )
                d = load_tile(
                    sin,
                    sin_stride_s,
                    0,
                    keys - n0,
                    COLS,
                    BLOCK_N,
                    BLOCK_C,
                    EVEN_N or ((CAUSAL or HAS_WINDOW) and part_of == 1),
                    COLS == BLOCK_C,
                )
                k, k_second = turned(k, k_second, c, d)
                k_second = k_second.to(dtype)
            k = k.to(dtype)
            # [BN, BH]; beside k and not after the softmax: 637 us against 646 at S = 4096 and rank 32, though 124
            # against 120 at S = 512 and rank 40 (the shape is in tiles.py).
            v, _ = rebuild(
                v_p,
                v_row,
                keys - n0,
                v_u,
                v_u_row,
                v_rank,
                v_factor,
                0,
                V_FACTORED,
                V_ONE_PASS,
                False,
                V_FULL,
                V_BLOCK_R,
                EVEN_N or ((CAUSAL or HAS_WINDOW) and part_of == 1),
                BLOCK_N,
                HEAD_DIM,
                BLOCK_H,
            )
            v = v.to(dtype)
            # [BM, BN]
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
            if TURNED:
                scores = tl.dot(q_second, tl.trans(k_second), scores, input_precision="ieee")
            if HAS_MASK or not (EVEN_N or ((CAUSAL or HAS_WINDOW) and part_of == 1)):
                # [BN]
                n = n0 + tl.arange(0, BLOCK_N)
                allowed = n < keys
                if HAS_MASK:
                    allowed = tl.load(key_mask + n, mask=allowed, other=0) != 0
                scores = tl.where(allowed[None, :], scores, float("-inf"))
            if (CAUSAL or HAS_WINDOW) and part_of != 1:
                # [BM], [BN]
                row = place + tl.arange(0, BLOCK_M) // MEMBERS
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
            if TURNED:
                cos += BLOCK_N * cos_stride_s
                sin += BLOCK_N * sin_stride_s

    # A row that saw no key has acc = 0 and total = 0, and stays 0.
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    if V_HAS_BIAS:
        # Once is enough, as weights sum to one.
        acc += tl.where(total > 0.0, 1.0, 0.0)[:, None] * bias_row(
            v_bias, kv_head, 0, HEAD_DIM, HEAD_DIM, BLOCK_H
        )
    # [BM]
    rows = tl.arange(0, BLOCK_M)
    # [BH]
    cols = tl.arange(0, BLOCK_H)
    inside = (rows // MEMBERS < tokens_left)[:, None] & (cols[None, :] < HEAD_DIM)
    at = out + (rows // MEMBERS)[:, None] * out_row + (rows % MEMBERS)[:, None] * HEAD_DIM + cols[None, :]
    tl.store(at, acc.to(dtype), mask=inside)
