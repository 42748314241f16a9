"""FFN v1 in Triton: tiles of t = act(P·U1ᵀ + b1) made on chip and folded into S = t·V2ᵀ, also on chip.

Source: FlashSVD, arXiv 2508.01506. Unlike the grid there, which has a program per 32 output ranks and so
makes t anew R2/32 times, one program keeps up to 256 output ranks of its rows.

Letters in shape comments: BM rows, BD columns of the wide activation, BR1 and BR2 input and output ranks of a
tile.
"""

# mypy: allow-untyped-defs
# Triton reads its own annotations: a parameter is a tensor, a pointer or a number as the call has it.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _activate(t, ACTIVATION: tl.constexpr):
    """The activation in fp32; every one of them sends 0 to 0, so columns beyond D stay without effect."""
    if ACTIVATION == "relu":
        return tl.maximum(t, 0.0)
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh z)/2 = sigmoid(2 z), and sigmoid needs no library beyond exp.
        return t * tl.sigmoid(1.5957691216057308 * (t + 0.044715 * t * t * t))
    else:
        return 0.5 * t * (1.0 + tl.erf(t * 0.7071067811865476))


@triton.jit
def _rows(ptr, stride, rows_left, first, cols_left, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Tile of a row-major matrix from column `first`; zero where fewer rows or columns are left."""
    # [ROWS]
    rows = tl.arange(0, ROWS)
    # [COLS]
    cols = first + tl.arange(0, COLS)
    inside = (rows[:, None] < rows_left) & (cols[None, :] < cols_left)
    # [ROWS, COLS]
    return tl.load(ptr + rows[:, None] * stride + cols[None, :], mask=inside, other=0.0)


@triton.jit
def ffn_kernel(
    p,
    u1,
    b1,
    v2,
    out,
    rows,
    width,
    rank_in,
    rank_out,
    p_stride,
    u_stride,
    v_stride,
    out_stride,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R1: tl.constexpr,
    BLOCK_R2: tl.constexpr,
):
    """One program per block of rows and block of output ranks; the latter runs fastest in the 1-d grid.

    p [M, R1], u1 [D, R1], b1 [D], v2 [R2, D], out [M, R2], all with last stride 1.
    """
    dtype = p.dtype.element_ty
    blocks = tl.cdiv(rank_out, BLOCK_R2)
    pid = tl.program_id(0)
    m0 = (pid // blocks).to(tl.int64) * BLOCK_M
    o0 = (pid % blocks).to(tl.int64) * BLOCK_R2
    p += m0 * p_stride
    v2 += o0 * v_stride
    rows_left = rows - m0
    outs_left = rank_out - o0

    # [BM, BR1]
    p_tile = 0
    if ONE_PASS:
        p_tile = _rows(p, p_stride, rows_left, 0, rank_in, BLOCK_M, BLOCK_R1)
    # [BM, BR2]
    acc = tl.zeros([BLOCK_M, BLOCK_R2], tl.float32)
    for d0 in range(0, width, BLOCK_D):
        if ONE_PASS:
            # [BD, BR1]
            u_tile = _rows(u1, u_stride, width - d0, 0, rank_in, BLOCK_D, BLOCK_R1)
            # [BM, BD]
            t = tl.dot(p_tile, tl.trans(u_tile), input_precision="ieee")
        else:
            # [BM, BD]
            t = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            for r0 in range(0, rank_in, BLOCK_R1):
                # [BM, BR1]
                p_part = _rows(p, p_stride, rows_left, r0, rank_in, BLOCK_M, BLOCK_R1)
                # [BD, BR1]
                u_part = _rows(u1, u_stride, width - d0, r0, rank_in, BLOCK_D, BLOCK_R1)
                t = tl.dot(p_part, tl.trans(u_part), t, input_precision="ieee")
        if HAS_BIAS:
            # [BD]
            d = d0 + tl.arange(0, BLOCK_D)
            t += tl.load(b1 + d, mask=d < width, other=0.0).to(tl.float32)[None, :]
        t = _activate(t, ACTIVATION)
        # [BR2, BD]
        v_tile = _rows(v2, v_stride, outs_left, d0, width, BLOCK_R2, BLOCK_D)
        if dtype == tl.float32:
            # A sum of block sums rounds less than one long chain (2.3x the error of plain torch on an H200 at
            # D = 2300, above the gate). By fma, as dot + acc would be folded back into the chain.
            acc = tl.fma(tl.dot(t, tl.trans(v_tile), input_precision="ieee"), 1.0, acc)
        else:
            acc = tl.dot(t.to(dtype), tl.trans(v_tile), acc, input_precision="ieee")
        # The pointer moves along, as d0 times a stride may not fit 32 bits.
        u1 += BLOCK_D * u_stride

    # [BM]
    m = tl.arange(0, BLOCK_M)
    # [BR2]
    o = tl.arange(0, BLOCK_R2)
    out += m0 * out_stride + o0
    inside = (m[:, None] < rows_left) & (o[None, :] < outs_left)
    tl.store(out + m[:, None] * out_stride + o[None, :], acc.to(out.dtype.element_ty), mask=inside)
