"""W·xᵀ for 2 to 64 rows of x, in Triton: on the matrix units, W read once.

A program takes BN rows of W and a share of its columns; of the programs that share rows, the one that is done last adds
their sums in order, so that the result does not depend on which it was. On Hopper half types of up to 16 sequences go
by `wide_kernel`.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from flashsvd.kernels.step.chain import last_of, wait
from flashsvd.kernels.step.outcome import sum_of, write


@triton.jit
def _dot(tile, part, acc, one, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """acc + tile·part."""
    if EXACT:
        # A sum of block sums: one chain over all columns rounds several times as much as plain torch. By fma with a one
        # that the compiler does not know, or it would make a chain of it again.
        return tl.fma(tl.dot(tile, part, input_precision=PRECISION), one, acc)
    else:
        return tl.dot(tile, part, acc, input_precision=PRECISION)


@triton.jit
def _products(
    x, w, m, n, batch, rows, x_stride, stride, first, last, one,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[BN, BM] fp32: rows n of w times rows m of x, over columns first to last."""
    acc = tl.zeros([BN, BM], tl.float32)
    # Rows past the end are read again instead of masked: what comes of them is not stored.
    w_at = w + tl.minimum(n, rows - 1).to(tl.int64)[:, None] * stride
    x_at = x + tl.minimum(m, batch - 1)[None, :] * x_stride
    for start in range(first, last, BK):
        k = start + tl.arange(0, BK)
        inside = k < last
        # [BN, BK], [BK, BM]
        tile = tl.load(w_at + k[None, :], mask=inside[None, :], other=0.0)
        part = tl.load(x_at + k[:, None], mask=inside[:, None], other=0.0)
        acc = _dot(tile, part, acc, one, EXACT, PRECISION)
    return acc


@triton.jit
def _both_products(
    x, w, x_up, w_up, m, n, batch, rows, x_stride, stride, x_up_stride, stride_up, first, last, first_up, last_up,
    one, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Two products of the same rows in one loop, which fills the pipeline once."""
    acc, acc_up = tl.zeros([BN, BM], tl.float32), tl.zeros([BN, BM], tl.float32)
    row, column = tl.minimum(n, rows - 1).to(tl.int64)[:, None], tl.minimum(m, batch - 1)[None, :]
    for start in range(0, tl.maximum(last - first, last_up - first_up), BK):
        k, k_up = first + start + tl.arange(0, BK), first_up + start + tl.arange(0, BK)
        inside, inside_up = k < last, k_up < last_up
        tile = tl.load(w + row * stride + k[None, :], mask=inside[None, :], other=0.0)
        part = tl.load(x + column * x_stride + k[:, None], mask=inside[:, None], other=0.0)
        acc = _dot(tile, part, acc, one, EXACT, PRECISION)
        tile_up = tl.load(w_up + row * stride_up + k_up[None, :], mask=inside_up[None, :], other=0.0)
        part_up = tl.load(x_up + column * x_up_stride + k_up[:, None], mask=inside_up[:, None], other=0.0)
        acc_up = _dot(tile_up, part_up, acc_up, one, EXACT, PRECISION)
    return acc, acc_up


@triton.jit
def block_kernel(
    x,
    w,
    bias,
    x_up,
    w_up,
    bias_up,
    squares,
    residual,
    gamma,
    out,
    scaled,
    out_squares,
    sums,
    arrived,
    batch,
    rows,
    width8,
    stride8,
    x_stride8,
    width_up8,
    stride_up8,
    x_up_stride8,
    out_stride,
    norm_width,
    squares_parts,
    eps,
    one,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    NORMED: tl.constexpr,
    NORMED_UP: tl.constexpr,
    ADDED: tl.constexpr,
    SCALED: tl.constexpr,
    EXACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BP: tl.constexpr,
    SPLITS: tl.constexpr,
    CHAINED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Programs (BN rows of w, share of the columns): `flashsvd.kernels.step.instructions.Rows` for several sequences.

    one: 1.0. sums: fp32 [blocks, SPLITS, 2 if GATED else 1, BN, BM]; arrived: int32 [blocks], zero before and after.
    """
    width, stride = width8 * 8, stride8 * 8
    block, split = tl.program_id(0), tl.program_id(1)
    n = block * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    share = tl.cdiv(tl.cdiv(width, SPLITS), BK) * BK
    first = split * share
    last = tl.minimum(first + share, width)
    if GATED:
        width_up, stride_up = width_up8 * 8, stride_up8 * 8
        share_up = tl.cdiv(tl.cdiv(width_up, SPLITS), BK) * BK
        first_up = split * share_up
        last_up = tl.minimum(first_up + share_up, width_up)
    wait(CHAINED, rows)
    if GATED:
        y, up = _both_products(
            x, w, x_up, w_up, m, n, batch, rows, x_stride8 * 8, stride, x_up_stride8 * 8, stride_up, first, last,
            first_up, last_up, one, BM, BN, BK, EXACT, PRECISION,
        )  # fmt: skip
    else:
        y = _products(
            x, w, m, n, batch, rows, x_stride8 * 8, stride, first, last, one, BM, BN, BK, EXACT, PRECISION
        )
        up = y
    done = True
    if SPLITS > 1:
        KINDS: tl.constexpr = 2 if GATED else 1
        # [BN, BM]
        place = tl.arange(0, BN)[:, None] * BM + m[None, :]
        mine = sums + (block * SPLITS + split) * (KINDS * BN * BM)
        tl.store(mine + place, y)
        if GATED:
            tl.store(mine + BN * BM + place, up)
        done = last_of(arrived + block, SPLITS)
    if done:
        if SPLITS > 1:
            base = sums + block * (SPLITS * KINDS * BN * BM)
            y = sum_of(base, KINDS * BN * BM, place, SPLITS)
            if GATED:
                up = sum_of(base + BN * BM, KINDS * BN * BM, place, SPLITS)
        total = None
        if NORMED or NORMED_UP:
            part = tl.arange(0, BP)
            there = (m < batch)[:, None] & (part < squares_parts)[None, :]
            total = tl.sum(
                tl.load(squares + m[:, None] * squares_parts + part[None, :], mask=there, other=0.0), 1
            )
        write(
            y, up, total, n, m, bias, bias_up, residual, gamma, out, scaled, out_squares, batch, rows, out_stride,
            norm_width, eps, HAS_BIAS, ACTIVATION, GATED, NORMED, NORMED_UP, ADDED, SCALED, EXACT,
        )  # fmt: skip
