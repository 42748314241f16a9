"""FFN v1, its gated forms and FFN v2 in Triton: tiles of the wide activation made on chip and folded into
S = h·V2ᵀ, also on chip.

Source: FlashSVD, arXiv 2508.01506. Unlike the grid there, which has a program per 32 output ranks and so makes
the wide activation anew R2/32 times, one program keeps all output ranks of its rows, up to 512 of them.

Letters in shape comments: BM rows, BD columns of the wide activation, BR ranks of a tile, BN outputs of v2. A
rank of 192 is held as a block of 128 and a tail of 64, where a power of two would pad it to 256.
"""

# mypy: allow-untyped-defs
# Triton reads its own annotations: a parameter is a tensor, a pointer or a number as the call has it.
from __future__ import annotations

import triton
import triton.language as tl

from flashsvd.kernels.ffn.triton_parts import accumulate, activate, known_multiple, load_tile, store_tile


@triton.jit
def _wide(
    p,
    p_stride,
    rows_left,
    held,
    held_tail,
    u,
    u_stride,
    width_left,
    rank,
    ONE_PASS: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TAIL_R: tl.constexpr,
):
    """P·Uᵀ [BM, BD] in fp32; `held` and `held_tail` are P's tiles where one pass takes all ranks, else unused."""
    if ONE_PASS:
        # [BD, BR]; a block with a tail behind it is full
        u_tile = load_tile(u, u_stride, 0, width_left, rank, BLOCK_D, BLOCK_R, EVEN_D, EVEN_R or TAIL_R > 0)
        # [BM, BD]
        t = tl.dot(held, tl.trans(u_tile), input_precision="ieee")
        if TAIL_R > 0:
            u_tail = load_tile(u, u_stride, BLOCK_R, width_left, rank, BLOCK_D, TAIL_R, EVEN_D, EVEN_R)
            t = tl.dot(held_tail, tl.trans(u_tail), t, input_precision="ieee")
    else:
        # [BM, BD]
        t = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for r0 in range(0, rank, BLOCK_R):
            # [BM, BR]
            p_tile = load_tile(p, p_stride, r0, rows_left, rank, BLOCK_M, BLOCK_R, False, EVEN_R)
            # [BD, BR]
            u_tile = load_tile(u, u_stride, r0, width_left, rank, BLOCK_D, BLOCK_R, EVEN_D, EVEN_R)
            t = accumulate(p_tile, u_tile, t)
    return t


@triton.jit
def _plus_bias(t, bias, width_left, HAS_BIAS: tl.constexpr, EVEN_D: tl.constexpr, BLOCK_D: tl.constexpr):
    """t + bias over its columns."""
    if HAS_BIAS:
        # [BD]
        d = tl.arange(0, BLOCK_D)
        if EVEN_D:
            return t + tl.load(bias + d).to(tl.float32)[None, :]
        else:
            return t + tl.load(bias + d, mask=d < width_left, other=0.0).to(tl.float32)[None, :]
    else:
        return t


@triton.jit
def _fold(
    acc,
    acc_tail,
    t,
    up,
    b1,
    up_b,
    v2,
    v_stride,
    outs_left,
    width_left,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_UP_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EXACT: tl.constexpr,
    HW_TANH: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_R2: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R2: tl.constexpr,
    TAIL_R2: tl.constexpr,
):
    """Bias, activation and gate of one tile [BM, BD], folded into both accumulators [BM, BR]."""
    # [BM, BD]
    h = activate(_plus_bias(t, b1, width_left, HAS_BIAS, EVEN_D, BLOCK_D), ACTIVATION, EXACT, HW_TANH)
    if GATED:
        h = h * _plus_bias(up, up_b, width_left, HAS_UP_BIAS, EVEN_D, BLOCK_D)
    # [BR, BD]
    v_tile = load_tile(
        v2, v_stride, 0, outs_left, width_left, BLOCK_R2, BLOCK_D, EVEN_R2 or TAIL_R2 > 0, EVEN_D
    )
    acc = accumulate(h, v_tile, acc)
    if TAIL_R2 > 0:
        v_tail = load_tile(
            v2 + BLOCK_R2 * v_stride,
            v_stride,
            0,
            outs_left - BLOCK_R2,
            width_left,
            TAIL_R2,
            BLOCK_D,
            EVEN_R2,
            EVEN_D,
        )
        acc_tail = accumulate(h, v_tail, acc_tail)
    return acc, acc_tail


@triton.jit
def ffn_kernel(
    p,
    u1,
    b1,
    up_p,
    up_u,
    up_b,
    v2,
    u2,
    b2,
    out,
    rows,
    width,
    rank_in,
    rank_up,
    rank_out,
    out_width,
    p_stride,
    u1_stride,
    up_p_stride,
    up_u_stride,
    v2_stride,
    u2_stride,
    out_stride,
    GATED: tl.constexpr,
    FUSE_OUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_UP_BIAS: tl.constexpr,
    HAS_OUT_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EXACT: tl.constexpr,
    HW_TANH: tl.constexpr,
    ALIGN_R1: tl.constexpr,
    ALIGN_UP: tl.constexpr,
    ALIGN_D: tl.constexpr,
    ALIGN_R2: tl.constexpr,
    EVEN_D: tl.constexpr,
    EVEN_R1: tl.constexpr,
    EVEN_UP: tl.constexpr,
    EVEN_R2: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R1: tl.constexpr,
    TAIL_R1: tl.constexpr,
    BLOCK_UP: tl.constexpr,
    TAIL_UP: tl.constexpr,
    BLOCK_R2: tl.constexpr,
    TAIL_R2: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per block of rows and block of output ranks; the latter runs fastest in the 1-d grid.

    p [M, R1], u1 [D, R1], b1 [D], v2 [R2, D], out [M, R2], all with last stride 1. GATED multiplies by the branch
    up_p [M, Ru], up_u [D, Ru], up_b [D]. FUSE_OUT goes on with u2 [N, R2], b2 [N] and out [M, N]; its one block
    of output ranks holds all of them.
    """
    rank_in = known_multiple(rank_in, ALIGN_R1)
    p_stride = known_multiple(p_stride, ALIGN_R1)
    u1_stride = known_multiple(u1_stride, ALIGN_R1)
    rank_up = known_multiple(rank_up, ALIGN_UP)
    up_p_stride = known_multiple(up_p_stride, ALIGN_UP)
    up_u_stride = known_multiple(up_u_stride, ALIGN_UP)
    width = known_multiple(width, ALIGN_D)
    v2_stride = known_multiple(v2_stride, ALIGN_D)
    rank_out = known_multiple(rank_out, ALIGN_R2)
    u2_stride = known_multiple(u2_stride, ALIGN_R2)
    out_width = known_multiple(out_width, ALIGN_R2)
    out_stride = known_multiple(out_stride, ALIGN_R2)

    blocks = tl.cdiv(rank_out, BLOCK_R2 + TAIL_R2)
    pid = tl.program_id(0)
    m0 = (pid // blocks).to(tl.int64) * BLOCK_M
    o0 = (pid % blocks).to(tl.int64) * (BLOCK_R2 + TAIL_R2)
    p += m0 * p_stride
    up_p += m0 * up_p_stride
    v2 += o0 * v2_stride
    out += m0 * out_stride + o0
    rows_left = rows - m0
    outs_left = rank_out - o0

    # [BM, BR] each
    held, held_tail, up_held, up_held_tail = 0, 0, 0, 0
    if ONE_PASS:
        held = load_tile(p, p_stride, 0, rows_left, rank_in, BLOCK_M, BLOCK_R1, False, EVEN_R1 or TAIL_R1 > 0)
        if TAIL_R1 > 0:
            held_tail = load_tile(p, p_stride, BLOCK_R1, rows_left, rank_in, BLOCK_M, TAIL_R1, False, EVEN_R1)
        if GATED:
            up_held = load_tile(
                up_p, up_p_stride, 0, rows_left, rank_up, BLOCK_M, BLOCK_UP, False, EVEN_UP or TAIL_UP > 0
            )
            if TAIL_UP > 0:
                up_held_tail = load_tile(
                    up_p, up_p_stride, BLOCK_UP, rows_left, rank_up, BLOCK_M, TAIL_UP, False, EVEN_UP
                )
    # [BM, BR] each
    acc = tl.zeros([BLOCK_M, BLOCK_R2], tl.float32)
    acc_tail = 0
    if TAIL_R2 > 0:
        acc_tail = tl.zeros([BLOCK_M, TAIL_R2], tl.float32)

    # Pipelined by hand: the next block's product is issued before this block's activation and second product,
    # which then run while the tensor cores work (189 us without, 121 us with, at M 16384, D 3072, R 240, H200).
    # [BM, BD] each
    t = _wide(
        p, p_stride, rows_left, held, held_tail, u1, u1_stride, width, rank_in,
        ONE_PASS, EVEN_D, EVEN_R1, BLOCK_M, BLOCK_D, BLOCK_R1, TAIL_R1,
    )  # fmt: skip
    up = 0
    if GATED:
        up = _wide(
            up_p, up_p_stride, rows_left, up_held, up_held_tail, up_u, up_u_stride, width, rank_up,
            ONE_PASS, EVEN_D, EVEN_UP, BLOCK_M, BLOCK_D, BLOCK_UP, TAIL_UP,
        )  # fmt: skip
    for d0 in range(BLOCK_D, width, BLOCK_D):
        # The pointers move along, as d0 times a stride may not fit 32 bits.
        u1 += BLOCK_D * u1_stride
        next_t = _wide(
            p, p_stride, rows_left, held, held_tail, u1, u1_stride, width - d0, rank_in,
            ONE_PASS, EVEN_D, EVEN_R1, BLOCK_M, BLOCK_D, BLOCK_R1, TAIL_R1,
        )  # fmt: skip
        next_up = up
        if GATED:
            up_u += BLOCK_D * up_u_stride
            next_up = _wide(
                up_p, up_p_stride, rows_left, up_held, up_held_tail, up_u, up_u_stride, width - d0, rank_up,
                ONE_PASS, EVEN_D, EVEN_UP, BLOCK_M, BLOCK_D, BLOCK_UP, TAIL_UP,
            )  # fmt: skip
        # Never the last block, so full.
        acc, acc_tail = _fold(
            acc, acc_tail, t, up, b1, up_b, v2, v2_stride, outs_left, BLOCK_D,
            GATED, HAS_BIAS, HAS_UP_BIAS, ACTIVATION, EXACT, HW_TANH, True, EVEN_R2, BLOCK_D, BLOCK_R2, TAIL_R2,
        )  # fmt: skip
        b1 += BLOCK_D
        up_b += BLOCK_D
        v2 += BLOCK_D
        t = next_t
        up = next_up
    last = width - (tl.cdiv(width, BLOCK_D) - 1) * BLOCK_D
    acc, acc_tail = _fold(
        acc, acc_tail, t, up, b1, up_b, v2, v2_stride, outs_left, last,
        GATED, HAS_BIAS, HAS_UP_BIAS, ACTIVATION, EXACT, HW_TANH, EVEN_D, EVEN_R2, BLOCK_D, BLOCK_R2, TAIL_R2,
    )  # fmt: skip

    if FUSE_OUT:
        dtype = u2.dtype.element_ty
        # [BM, BR]
        s = acc.to(dtype)
        for n0 in range(0, out_width, BLOCK_N):
            # [BN, BR]
            u2_tile = load_tile(
                u2, u2_stride, 0, out_width - n0, rank_out, BLOCK_N, BLOCK_R2, False, EVEN_R2 or TAIL_R2 > 0
            )
            # [BM, BN]
            y = tl.dot(s, tl.trans(u2_tile), input_precision="ieee")
            if TAIL_R2 > 0:
                u2_tail = load_tile(
                    u2, u2_stride, BLOCK_R2, out_width - n0, rank_out, BLOCK_N, TAIL_R2, False, EVEN_R2
                )
                y = tl.dot(acc_tail.to(dtype), tl.trans(u2_tail), y, input_precision="ieee")
            y = _plus_bias(y, b2 + n0, out_width - n0, HAS_OUT_BIAS, False, BLOCK_N)
            store_tile(out, out_stride, n0, y, rows_left, out_width, BLOCK_M, BLOCK_N)
            u2 += BLOCK_N * u2_stride
    else:
        store_tile(out, out_stride, 0, acc, rows_left, outs_left, BLOCK_M, BLOCK_R2)
        if TAIL_R2 > 0:
            store_tile(out, out_stride, BLOCK_R2, acc_tail, rows_left, outs_left, BLOCK_M, TAIL_R2)
