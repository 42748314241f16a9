"""What the attention kernel is made of: where heads lie, heads rebuilt from factors, and turned.

Letters as in `flashsvd.kernels.attention.triton_kernel`. A tile of q or k is one part of BC columns, or two where it
is turned: the halves of a head, in which column i of one turns with column i of the other. Each half is a product
with its own columns of the factor, so that the turn moves nothing between threads.
"""

# mypy: allow-untyped-defs
# Triton reads its own annotations: a parameter is a tensor, a pointer or a number as the call has it.
from __future__ import annotations

import triton
import triton.language as tl

from flashsvd.kernels.ffn.triton_parts import load_tile


@triton.jit
def span(table, head, FACTORED: tl.constexpr, ALIGN: tl.constexpr, HEAD_DIM: tl.constexpr):
    """First column of P, first row of U and rank of one head; a dense head is h columns with no factor."""
    if FACTORED:
        row = table + head * 3
        # The table holds plain numbers: without these promises every load would be one element wide.
        p_start = tl.multiple_of(tl.load(row), ALIGN)
        u_start = tl.multiple_of(tl.load(row + 1), ALIGN)
        rank = tl.multiple_of(tl.load(row + 2), ALIGN)
        return p_start, u_start, rank
    else:
        return head * HEAD_DIM, head * 0, head * 0 + HEAD_DIM


@triton.jit
def factor(
    u,
    row,
    rank,
    FACTORED: tl.constexpr,
    ONE_PASS: tl.constexpr,
    TURNED: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One head's whole factor, [BR, BC] for each part, where one tile holds it; stand-ins elsewhere."""
    if FACTORED and ONE_PASS:
        first = load_tile(u, row, 0, rank, COLS, BLOCK_R, BLOCK_C, FULL, COLS == BLOCK_C)
        if TURNED:
            second = load_tile(u + COLS, row, 0, rank, COLS, BLOCK_R, BLOCK_C, FULL, COLS == BLOCK_C)
            return first, second
        else:
            return first, 0
    else:
        return 0, 0


@triton.jit
def rebuild(
    p,
    p_row,
    rows_left,
    u,
    u_row,
    rank,
    first_factor,
    second_factor,
    FACTORED: tl.constexpr,
    ONE_PASS: tl.constexpr,
    TURNED: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The parts [R, BC] of a tile of one head, P·U in fp32 or the dense columns; `p` and `u` point at its first row.
    A stand-in for the second part where there is one.

    EVEN: the tile is full of rows; FULL: ranks are whole tiles. Neither needs a mask then.
    """
    if not FACTORED:
        first = load_tile(p, p_row, 0, rows_left, COLS, ROWS, BLOCK_C, EVEN, COLS == BLOCK_C)
        if TURNED:
            second = load_tile(p + COLS, p_row, 0, rows_left, COLS, ROWS, BLOCK_C, EVEN, COLS == BLOCK_C)
            return first, second
        else:
            return first, 0
    elif ONE_PASS:
        # [R, BR]
        p_tile = load_tile(p, p_row, 0, rows_left, rank, ROWS, BLOCK_R, EVEN, FULL)
        first = tl.dot(p_tile, first_factor, input_precision="ieee")
        if TURNED:
            return first, tl.dot(p_tile, second_factor, input_precision="ieee")
        else:
            return first, 0
    else:
        # [R, BC]
        first = tl.zeros([ROWS, BLOCK_C], tl.float32)
        second = tl.zeros([ROWS, BLOCK_C], tl.float32) if TURNED else 0
        for start in range(0, rank, BLOCK_R):
            # [R, BR]
            p_tile = load_tile(p, p_row, start, rows_left, rank, ROWS, BLOCK_R, EVEN, FULL)
            # [BR, BC]
            at = u + start * u_row
            u_tile = load_tile(at, u_row, 0, rank - start, COLS, BLOCK_R, BLOCK_C, FULL, COLS == BLOCK_C)
            first = tl.dot(p_tile, u_tile, first, input_precision="ieee")
            if TURNED:
                u_tile = load_tile(
                    at + COLS, u_row, 0, rank - start, COLS, BLOCK_R, BLOCK_C, FULL, COLS == BLOCK_C
                )
                second = tl.dot(p_tile, u_tile, second, input_precision="ieee")
        return first, second


@triton.jit
def bias_row(bias, head, first, HEAD_DIM: tl.constexpr, COLS: tl.constexpr, BLOCK_C: tl.constexpr):
    """COLS columns of one head's bias in fp32, from column `first`, [1, BC]."""
    # [BC]
    cols = tl.arange(0, BLOCK_C)
    at = bias + head * HEAD_DIM + first + cols
    return tl.load(at, mask=cols < COLS, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_rows(
    ptr,
    stride,
    member_stride,
    tokens_left,
    MEMBERS: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile [R, BC] whose rows are MEMBERS heads of one token after another; zero beyond `tokens_left` unless
    EVEN."""
    # [R]
    rows = tl.arange(0, ROWS)
    # [BC]
    cols = tl.arange(0, BLOCK_C)
    at = ptr + (rows // MEMBERS)[:, None] * stride + (rows % MEMBERS)[:, None] * member_stride + cols[None, :]
    if EVEN:
        if COLS == BLOCK_C:
            return tl.load(at)
        else:
            return tl.load(at, mask=cols[None, :] < COLS, other=0.0)
    else:
        inside = (rows // MEMBERS)[:, None] < tokens_left
        return tl.load(at, mask=inside & (cols[None, :] < COLS), other=0.0)


@triton.jit
def turned(first, second, cos, sin):
    """The halves of heads [R, BC] turned by their tokens' angles, in fp32."""
    first = first.to(tl.float32)
    second = second.to(tl.float32)
    cos = cos.to(tl.float32)
    sin = sin.to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def queries(
    p,
    row,
    tokens_left,
    u,
    u_row,
    rank,
    first_factor,
    second_factor,
    bias,
    head,
    sign,
    cos,
    cos_row,
    sin,
    sin_row,
    FACTORED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ONE_PASS: tl.constexpr,
    TURNED: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_R: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The parts [R, BC] of a tile of one head of q, as `rebuild` makes them, in its dtype, with bias, turn and sign."""
    first, second = rebuild(
        p,
        row,
        tokens_left,
        u,
        u_row,
        rank,
        first_factor,
        second_factor,
        FACTORED,
        ONE_PASS,
        TURNED,
        FULL,
        BLOCK_R,
        EVEN,
        ROWS,
        COLS,
        BLOCK_C,
    )
    if HAS_BIAS:
        first += bias_row(bias, head, 0, HEAD_DIM, COLS, BLOCK_C)
    if TURNED:
        if HAS_BIAS:
            second += bias_row(bias, head, COLS, HEAD_DIM, COLS, BLOCK_C)
        c = load_tile(cos, cos_row, 0, tokens_left, COLS, ROWS, BLOCK_C, EVEN, COLS == BLOCK_C)
        d = load_tile(sin, sin_row, 0, tokens_left, COLS, ROWS, BLOCK_C, EVEN, COLS == BLOCK_C)
        first, second = turned(first, second, c, d)
        second = (second * sign).to(p.dtype.element_ty)
    return (first * sign).to(p.dtype.element_ty), second


@triton.jit
def member_queries(
    p,
    row,
    tokens_left,
    bias,
    head,
    sign,
    cos,
    cos_row,
    sin,
    sin_row,
    HAS_BIAS: tl.constexpr,
    TURNED: tl.constexpr,
    MEMBERS: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The same of MEMBERS heads from `head` on, one token after another, where q is dense."""
    p += head * HEAD_DIM
    first = load_rows(p, row, HEAD_DIM, tokens_left, MEMBERS, EVEN, ROWS, COLS, BLOCK_C)
    second = 0
    if TURNED:
        second = load_rows(p + COLS, row, HEAD_DIM, tokens_left, MEMBERS, EVEN, ROWS, COLS, BLOCK_C)
    if HAS_BIAS:
        bias += head * HEAD_DIM
        first += load_rows(bias, 0, HEAD_DIM, tokens_left, MEMBERS, EVEN, ROWS, COLS, BLOCK_C).to(tl.float32)
        if TURNED:
            bias += COLS
            second += load_rows(bias, 0, HEAD_DIM, tokens_left, MEMBERS, EVEN, ROWS, COLS, BLOCK_C).to(
                tl.float32
            )
    if TURNED:
        c = load_rows(cos, cos_row, 0, tokens_left, MEMBERS, EVEN, ROWS, COLS, BLOCK_C)
        d = load_rows(sin, sin_row, 0, tokens_left, MEMBERS, EVEN, ROWS, COLS, BLOCK_C)
        first, second = turned(first, second, c, d)
        second = (second * sign).to(p.dtype.element_ty)
    return (first * sign).to(p.dtype.element_ty), second
