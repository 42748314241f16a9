"""Heads of q, k and v from rank-space activations, in Triton: y = p·U with U [rank, h] of every head.

The factors of a head lie row under row; a program takes rows of its share of the rank, and for one sequence some of
their columns. The sums of every share are stored on their own; the attention that reads them adds them.
"""

# mypy: allow-untyped-defs, disable-error-code="assignment,misc"
# Triton knows no unpacking into a tuple.
# ruff: noqa: RUF005
from __future__ import annotations

import triton
import triton.language as tl

from flashsvd.kernels.step.chain import wait


@triton.jit
def _tile(u, rank, columns, chunk: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr):
    """[BK, BH]"""
    k, h = chunk * BK + tl.arange(0, BK), tl.arange(0, BH)
    return tl.load(
        u + k[:, None] * H + h[None, :], mask=(k < rank)[:, None] & (h < columns)[None, :], other=0.0
    )


@triton.jit
def head_kernel(
    p,
    like,
    table,
    out,
    batch,
    p_stride8,
    out_stride,
    share_stride,
    H: tl.constexpr,
    BH: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    CHUNKS: tl.constexpr,
    AHEAD: tl.constexpr,
    LANES: tl.constexpr,
    CHAINED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per row of the table, int64 [units, 6]: first column of p [batch, 8·p_stride8], address of the first
    of its numbers of U [rank, H], rank, columns from there on, first column of the output, share.

    out fp32 [shares, batch, columns]; like: any tensor of the factors' dtype. One sequence: CHUNKS tiles of BK rows at
    most, AHEAD of them asked for before p is there; LANES: rows that the threads take at once.
    """
    row = table + tl.program_id(0) * 6
    column = tl.load(row).to(tl.int32)
    u = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(like.dtype.element_ty)), 16)
    rank = tl.load(row + 2).to(tl.int32)
    columns = tl.load(row + 3).to(tl.int32)
    place = tl.load(row + 4).to(tl.int32)
    share = tl.load(row + 5).to(tl.int32)
    h = tl.arange(0, BH)
    in_h = h < columns
    if BM == 1:
        tiles = ()
        for chunk in tl.static_range(min(CHUNKS, AHEAD)):
            tiles = tiles + (_tile(u, rank, columns, chunk, H, BH, BK),)
        wait(CHAINED, share_stride)
        parts = ()
        for chunk in tl.static_range(CHUNKS):
            k = chunk * BK + tl.arange(0, BK)
            parts = parts + (tl.load(p + column + k, mask=k < rank, other=0.0),)
        acc = tl.zeros([LANES, BH], tl.float32)
        for chunk in tl.static_range(CHUNKS):
            product = tiles[0].to(tl.float32) * parts[chunk].to(tl.float32)[:, None]
            tiles = tiles[1:]
            if chunk + AHEAD < CHUNKS:
                tiles = tiles + (_tile(u, rank, columns, chunk + AHEAD, H, BH, BK),)
            acc += tl.sum(tl.reshape(product, [BK // LANES, LANES, BH]), 0)
        tl.store(out + share * share_stride + place + h, tl.sum(acc, 0), mask=in_h)
    else:
        wait(CHAINED, share_stride)
        m, k = tl.arange(0, BM), tl.arange(0, BK)
        p_at = p + tl.minimum(m, batch - 1)[:, None] * (p_stride8 * 8) + column
        sums = tl.zeros([BM, BH], tl.float32)
        for start in range(0, rank, BK):
            here = start + k
            inside = here < rank
            # [BK, BH], [BM, BK]
            rows = tl.load(
                u + here[:, None] * H + h[None, :], mask=inside[:, None] & in_h[None, :], other=0.0
            )
            part = tl.load(p_at + here[None, :], mask=inside[None, :], other=0.0)
            sums = tl.dot(part, rows, sums, input_precision=PRECISION)
        stored = out + share * share_stride + m[:, None] * out_stride + place + h[None, :]
        tl.store(stored, sums, mask=(m < batch)[:, None] & in_h[None, :])
