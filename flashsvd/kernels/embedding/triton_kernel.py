"""Embedding lookups, their sum and its norm in Triton: whole rows on chip, written once."""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from flashsvd.kernels.norm.triton_kernel import normalised


@triton.jit
def load_rows(table, index, table_rows, table_stride, stride_b, stride_s, b, s, n, real, N: tl.constexpr):
    """Rows of table [table_rows, N] for tokens (b, s), fp32 [BM, BN], and whether each was one: [BM]."""
    # [BM]
    i = tl.load(index + b * stride_b + s * stride_s, mask=real, other=0).to(tl.int64)
    known = (i >= 0) & (i < table_rows)
    # [BM, BN]
    inside = (real & known)[:, None] & (n < N)[None, :]
    rows = tl.load(table + i[:, None] * table_stride + n[None, :], mask=inside, other=0.0)
    return rows.to(tl.float32), known


@triton.jit
def embed_norm_kernel(
    table0,
    table1,
    table2,
    index0,
    index1,
    index2,
    weight,
    shift,
    bias,
    out,
    tokens,
    seq,
    table0_rows,
    table1_rows,
    table2_rows,
    table0_stride,
    table1_stride,
    table2_stride,
    index0_stride_b,
    index1_stride_b,
    index2_stride_b,
    index0_stride_s,
    index1_stride_s,
    index2_stride_s,
    eps,
    N: tl.constexpr,
    TABLES: tl.constexpr,
    IS_LAYER: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per BLOCK_M tokens. table [V, N], index [B, S], weight, shift, bias [N], out [B·S, N]."""
    # [BM]
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = m < tokens
    b = m // seq
    s = m % seq
    # [BN]
    n = tl.arange(0, BLOCK_N)
    in_row = n < N
    # [BM, BN], [BM]
    y, known = load_rows(
        table0, index0, table0_rows, table0_stride, index0_stride_b, index0_stride_s, b, s, n, real, N
    )
    if TABLES > 1:
        more, found = load_rows(
            table1, index1, table1_rows, table1_stride, index1_stride_b, index1_stride_s, b, s, n, real, N
        )
        y += more
        known = known & found
    if TABLES > 2:
        more, found = load_rows(
            table2, index2, table2_rows, table2_stride, index2_stride_b, index2_stride_s, b, s, n, real, N
        )
        y += more
        known = known & found
    if HAS_BIAS:
        y += tl.load(bias + n, mask=in_row, other=0.0).to(tl.float32)[None, :]
    y = normalised(y, weight, shift, n, eps, N, IS_LAYER, HAS_SHIFT)
    # A row that no table has must not pass as a number.
    y = tl.where(known[:, None], y, float("nan"))
    tl.store(
        out + m[:, None] * N + n[None, :],
        y.to(out.dtype.element_ty),
        mask=real[:, None] & in_row[None, :],
    )
