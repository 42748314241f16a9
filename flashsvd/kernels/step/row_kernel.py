"""W·x for one x, in Triton, at the speed at which W is read.

Threads hold 8 neighbours of a row, multiply them by the same 8 of x and sum them at once, so that a program keeps one
tile of W that is on its way, one that is worked on, and an eighth of a tile as sums.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from flashsvd.kernels.ffn.triton_parts import activate
from flashsvd.kernels.step.chain import wait


@triton.jit
def _first_tile(w, n, rows, width, stride, BK: tl.constexpr):
    k = tl.arange(0, BK)
    at = w + n.to(tl.int64)[:, None] * stride + k[None, :]
    return tl.load(at, mask=(n < rows)[:, None] & (k < width)[None, :], other=0.0)


@triton.jit
def _products(x, w, tile, n, rows, width, stride, BN: tl.constexpr, BK: tl.constexpr):
    """[BN, BK / 8] fp32, still to be added up: rows n of w times x [width], the first tile of w given."""
    k = tl.arange(0, BK)
    at = w + n.to(tl.int64)[:, None] * stride + k[None, :]
    acc = tl.zeros([BN, BK // 8], tl.float32)
    for start in range(0, width, BK):
        here, ahead = start + k, start + BK + k
        following = tl.load(at + (start + BK), mask=(n < rows)[:, None] & (ahead < width)[None, :], other=0.0)
        part = tl.load(x + here, mask=here < width, other=0.0).to(tl.float32)
        product = tile.to(tl.float32) * part[None, :]
        acc += tl.sum(tl.reshape(product, [BN, BK // 8, 8]), 2)
        tile = following
    return acc


@triton.jit
def row_kernel(
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
    rows,
    width8,
    stride8,
    width_up8,
    stride_up8,
    norm_width,
    parts,
    eps,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    NORMED: tl.constexpr,
    NORMED_UP: tl.constexpr,
    ADDED: tl.constexpr,
    SCALED: tl.constexpr,
    EXACT: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BP: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One program per BN rows of w [rows, 8·width8]: `flashsvd.kernels.step.instructions.Rows` for one sequence.

    Widths and strides count eights, so that rows are known to start on 16 bytes.
    """
    width, stride = width8 * 8, stride8 * 8
    program = tl.program_id(0)
    n = program * BN + tl.arange(0, BN)
    in_n = n < rows
    tile = _first_tile(w, n, rows, width, stride, BK)
    if GATED:
        width_up, stride_up = width_up8 * 8, stride_up8 * 8
        tile_up = _first_tile(w_up, n, rows, width_up, stride_up, BK)
    if SCALED:
        shift = tl.load(gamma + n, mask=in_n, other=0.0).to(tl.float32)
    wait(CHAINED)
    # Asked for at once, so that the product hides how long they take.
    if NORMED or NORMED_UP:
        part = tl.arange(0, BP)
        before = tl.load(squares + part, mask=part < parts, other=0.0)
    if ADDED:
        kept = tl.load(residual + n, mask=in_n, other=0.0).to(tl.float32)
    acc = _products(x, w, tile, n, rows, width, stride, BN, BK)
    if GATED:
        acc_up = _products(x_up, w_up, tile_up, n, rows, width_up, stride_up, BN, BK)
    y = tl.sum(acc, 1)
    if NORMED or NORMED_UP:
        rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(before, 0) / norm_width + eps))
    if NORMED:
        y = y * rstd
    if HAS_BIAS:
        y += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)
    if ACTIVATION != "none":
        y = activate(y, ACTIVATION, EXACT, False)
    if GATED:
        up = tl.sum(acc_up, 1)
        if NORMED_UP:
            up = up * rstd
        if HAS_BIAS:
            up += tl.load(bias_up + n, mask=in_n, other=0.0).to(tl.float32)
        y = y * up
    if ADDED:
        y = y + kept
    if SCALED:
        y = y.to(out.dtype.element_ty).to(tl.float32)
        tl.store(scaled + n, (y * shift).to(scaled.dtype.element_ty), mask=in_n)
        tl.store(out_squares + program, tl.sum(tl.where(in_n, y * y, 0.0), 0))
    tl.store(out + n, y.to(out.dtype.element_ty), mask=in_n)
