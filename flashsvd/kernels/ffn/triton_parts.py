"""What the feed-forward kernel is made of: activations in fp32, and tiles read and written under masks."""

# mypy: allow-untyped-defs
# Triton reads its own annotations: a parameter is a tensor, a pointer or a number as the call has it.
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _times_sigmoid(x, half, HW_TANH: tl.constexpr):
    """x·sigmoid(2·half) = x/2·(1 + tanh(half)): one hardware instruction where there is one."""
    if HW_TANH:
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        return tl.fma(0.5 * x, tanh, 0.5 * x)
    else:
        return x * tl.sigmoid(2.0 * half)


@triton.jit
def activate(t, ACTIVATION: tl.constexpr, EXACT: tl.constexpr, HW_TANH: tl.constexpr):
    """The activation in fp32; every one of them sends 0 to 0, so columns beyond D stay without effect."""
    if ACTIVATION == "relu":
        return tl.maximum(t, 0.0)
    elif ACTIVATION == "silu":
        return _times_sigmoid(t, 0.5 * t, HW_TANH)
    elif ACTIVATION == "gelu_tanh":
        return _times_sigmoid(t, 0.7978845608028654 * t * tl.fma(0.044715 * t, t, 1.0), HW_TANH)
    elif EXACT:
        return 0.5 * t * (1.0 + tl.erf(t * 0.7071067811865476))
    else:
        # A fit to erf, within 2.52e-5 of the exact GELU everywhere: below bf16 and fp16 rounding, and with one
        # tanh. erf costs more than the matrix products hide: 179 us against 110 us at M 16384, D 3072, R 240.
        z = tl.minimum(t * t, 36.0)
        q = tl.fma(tl.fma(z, -0.000351520915, 0.0370056729), z, 0.797507853)
        return _times_sigmoid(t, t * q, HW_TANH)


@triton.jit
def known_multiple(number, ALIGN: tl.constexpr):
    """`number` itself, in a form that shows ALIGN divides it: Triton sees that of its own accord for 16 only,
    and a rank of 40 would be loaded 2 bytes at a time instead of 16."""
    return number // ALIGN * ALIGN


@triton.jit
def load_tile(
    ptr,
    stride,
    first,
    rows_left,
    cols_left,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    EVEN_ROWS: tl.constexpr,
    EVEN_COLS: tl.constexpr,
):
    """Tile of a row-major matrix from column `first`; zero where fewer rows or columns are left. No mask in a
    direction that the matrix fills."""
    # [ROWS]
    rows = tl.arange(0, ROWS)
    # [COLS]
    cols = first + tl.arange(0, COLS)
    # [ROWS, COLS]
    at = ptr + rows[:, None] * stride + cols[None, :]
    if EVEN_ROWS:
        if EVEN_COLS:
            return tl.load(at)
        else:
            return tl.load(at, mask=cols[None, :] < cols_left, other=0.0)
    elif EVEN_COLS:
        return tl.load(at, mask=rows[:, None] < rows_left, other=0.0)
    else:
        return tl.load(at, mask=(rows[:, None] < rows_left) & (cols[None, :] < cols_left), other=0.0)


@triton.jit
def accumulate(h, v_tile, acc):
    """acc + h·v_tileᵀ."""
    if v_tile.dtype == tl.float32:
        # A sum of block sums rounds less than one long chain (2.3x the error of plain torch on an H200 at
        # D = 2300, above the gate). By fma, as dot + acc would be folded back into the chain.
        return tl.fma(tl.dot(h, tl.trans(v_tile), input_precision="ieee"), 1.0, acc)
    else:
        return tl.dot(h.to(v_tile.dtype), tl.trans(v_tile), acc, input_precision="ieee")


@triton.jit
def store_tile(out, stride, first, tile, rows_left, cols_left, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Writes a tile [ROWS, COLS] from column `first`."""
    # [ROWS]
    rows = tl.arange(0, ROWS)
    # [COLS]
    cols = first + tl.arange(0, COLS)
    inside = (rows[:, None] < rows_left) & (cols[None, :] < cols_left)
    tl.store(out + rows[:, None] * stride + cols[None, :], tile.to(out.dtype.element_ty), mask=inside)
