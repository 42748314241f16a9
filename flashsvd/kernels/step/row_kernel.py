"""W·x for one x, in Triton, at the speed at which W is read.

Threads hold 8 neighbours of a row, multiply them by the same 8 of x and sum them at once, so that a program keeps the
tiles of W that are on their way, one that is worked on, and an eighth of a tile as sums. All of x is asked for at once:
a loop that asks for a piece of it in every turn waits for the L2 cache as often. A layer of Llama-2-7B at ranks 1024
and 1492, products alone, bf16, H200, in a chain: 58.8 us with such a loop, 48.5 without; at the speed of a copy 42.2.
Tried beside it: weights by asynchronous copies to shared memory, all of them before x is there, 56.2.
"""

# mypy: allow-untyped-defs, disable-error-code=assignment
# Triton knows no unpacking into a tuple.
# ruff: noqa: RUF005
from __future__ import annotations

import triton
import triton.language as tl

from flashsvd.kernels.ffn.triton_parts import activate
from flashsvd.kernels.step.chain import wait


@triton.jit
def _tile(w, n, rows, width, stride, chunk: tl.constexpr, BK: tl.constexpr):
    """[BN, BK]"""
    k = chunk * BK + tl.arange(0, BK)
    at = w + n.to(tl.int64)[:, None] * stride + k[None, :]
    return tl.load(at, mask=(n < rows)[:, None] & (k < width)[None, :], other=0.0)


@triton.jit
def _first_tiles(w, n, rows, width, stride, BK: tl.constexpr, CHUNKS: tl.constexpr, AHEAD: tl.constexpr):
    tiles = ()
    for chunk in tl.static_range(min(CHUNKS, AHEAD)):
        tiles = tiles + (_tile(w, n, rows, width, stride, chunk, BK),)
    return tiles


@triton.jit
def _vector(x, width, BK: tl.constexpr, CHUNKS: tl.constexpr):
    """x in pieces [BK]."""
    parts = ()
    for chunk in tl.static_range(CHUNKS):
        k = chunk * BK + tl.arange(0, BK)
        parts = parts + (tl.load(x + k, mask=k < width, other=0.0),)
    return parts


@triton.jit
def _products(
    parts, tiles, w, n, rows, width, stride, BN: tl.constexpr, BK: tl.constexpr, CHUNKS: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """[BN] fp32: rows n of w times x in pieces, the first tiles of w given."""
    acc = tl.zeros([BN, BK // 8], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        product = tiles[0].to(tl.float32) * parts[chunk].to(tl.float32)[None, :]
        tiles = tiles[1:]
        if chunk + AHEAD < CHUNKS:
            tiles = tiles + (_tile(w, n, rows, width, stride, chunk + AHEAD, BK),)
        acc += tl.sum(tl.reshape(product, [BN, BK // 8, 8]), 2)
    return tl.sum(acc, 1)


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
    squares_parts,
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
    CHUNKS: tl.constexpr,
    CHUNKS_UP: tl.constexpr,
    AHEAD: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One program per BN rows of w [rows, 8·width8]: `flashsvd.kernels.step.instructions.Rows` for one sequence.

    Widths and strides count eights, so that rows are known to start on 16 bytes. CHUNKS: tiles of BK columns to a row;
    AHEAD: how many are asked for before x is there.
    """
    width, stride = width8 * 8, stride8 * 8
    program = tl.program_id(0)
    n = program * BN + tl.arange(0, BN)
    in_n = n < rows
    tiles = _first_tiles(w, n, rows, width, stride, BK, CHUNKS, AHEAD)
    if GATED:
        width_up, stride_up = width_up8 * 8, stride_up8 * 8
        tiles_up = _first_tiles(w_up, n, rows, width_up, stride_up, BK, CHUNKS_UP, AHEAD)
    if SCALED:
        shift = tl.load(gamma + n, mask=in_n, other=0.0).to(tl.float32)
    wait(CHAINED, rows)
    parts = _vector(x, width, BK, CHUNKS)
    if GATED:
        parts_up = _vector(x_up, width_up, BK, CHUNKS_UP)
    if NORMED or NORMED_UP:
        part = tl.arange(0, BP)
        before = tl.load(squares + part, mask=part < squares_parts, other=0.0)
    if ADDED:
        kept = tl.load(residual + n, mask=in_n, other=0.0).to(tl.float32)
    y = _products(parts, tiles, w, n, rows, width, stride, BN, BK, CHUNKS, AHEAD)
    if GATED:
        up = _products(parts_up, tiles_up, w_up, n, rows, width_up, stride_up, BN, BK, CHUNKS_UP, AHEAD)
    if NORMED or NORMED_UP:
        rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(before, 0) / norm_width + eps))
    if NORMED:
        y = y * rstd
    if HAS_BIAS:
        y += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)
    if ACTIVATION != "none":
        y = activate(y, ACTIVATION, EXACT, False)
    if GATED:
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
