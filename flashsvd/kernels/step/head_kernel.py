"""Heads of q, k and v from rank-space activations, in Triton: y = p·U with U [rank, h] of every head.

The factors of a head lie row under row, so a program reads one piece of memory: the rows of its share of the rank. The
sums of every share are stored on their own; the attention that reads them adds them.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from flashsvd.kernels.step.chain import wait


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
    LANES: tl.constexpr,
    CHAINED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per row of the table, int64 [units, 5]: first column of p [batch, 8·p_stride8], address of rows of U
    [rank, H], rank, first column of the output, share. out fp32 [shares, batch, columns]; like: any tensor of the
    factors' dtype. LANES: rows of U that the threads take at once."""
    row = table + tl.program_id(0) * 5
    column = tl.load(row).to(tl.int32)
    u = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(like.dtype.element_ty)), 16)
    rank = tl.load(row + 2).to(tl.int32)
    place = tl.load(row + 3).to(tl.int32)
    share = tl.load(row + 4).to(tl.int32)
    h, k = tl.arange(0, BH), tl.arange(0, BK)
    in_h = (h < H)[None, :]
    at = u + h[None, :]
    if BM == 1:
        # [BK, BH]
        tile = tl.load(at + k[:, None] * H, mask=(k < rank)[:, None] & in_h, other=0.0)
        wait(CHAINED)
        acc = tl.zeros([LANES, BH], tl.float32)
        for start in range(0, rank, BK):
            here, later = start + k, start + BK + k
            following = tl.load(at + later[:, None] * H, mask=(later < rank)[:, None] & in_h, other=0.0)
            part = tl.load(p + column + here, mask=here < rank, other=0.0).to(tl.float32)
            product = tile.to(tl.float32) * part[:, None]
            acc += tl.sum(tl.reshape(product, [BK // LANES, LANES, BH]), 0)
            tile = following
        tl.store(out + share * share_stride + place + h, tl.sum(acc, 0), mask=h < H)
    else:
        wait(CHAINED)
        m = tl.arange(0, BM)
        p_at = p + tl.minimum(m, batch - 1)[:, None] * (p_stride8 * 8) + column
        sums = tl.zeros([BM, BH], tl.float32)
        for start in range(0, rank, BK):
            here = start + k
            inside = here < rank
            # [BK, BH], [BM, BK]
            rows = tl.load(at + here[:, None] * H, mask=inside[:, None] & in_h, other=0.0)
            part = tl.load(p_at + here[None, :], mask=inside[None, :], other=0.0)
            sums = tl.dot(part, rows, sums, input_precision=PRECISION)
        stored = out + share * share_stride + m[:, None] * out_stride + place + h[None, :]
        tl.store(stored, sums, mask=(m < batch)[:, None] & in_h)
