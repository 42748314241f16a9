"""LayerNorm and RMSNorm in Triton: whole rows on chip, one read and one write of the hidden state."""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def normalised(y, weight, shift, n, eps, N: tl.constexpr, IS_LAYER: tl.constexpr, HAS_SHIFT: tl.constexpr):
    """Rows y [BM, BN] in fp32, of whose columns n [BN] the first N count: normed, scaled and shifted."""
    in_row = n < N
    if IS_LAYER:
        # Two passes over registers, as a mean of squares less the square of the mean cancels.
        y = tl.where(in_row[None, :], y - (tl.sum(y, 1) / N)[:, None], 0.0)
    # Rounded to nearest: the hardware's own rsqrt was 4x plain torch's error in fp32 on an H200.
    y = y * tl.div_rn(1.0, tl.sqrt_rn(tl.sum(y * y, 1) / N + eps))[:, None]
    scale = tl.load(weight + n, mask=in_row, other=0.0).to(tl.float32)[None, :]
    if not HAS_SHIFT:
        return y * scale
    # + 0 keeps the compiler from making one fma of this product and the sum, which plain torch rounds one by one.
    # Where they cancel, the fma is no nearer to the truth (y is rounded before it) and not plain torch's number: one
    # element of rms in fp32 was 6.0e-7 off, plain torch 1.4e-7.
    y = tl.fma(y, scale, tl.zeros_like(y))
    return y + tl.load(shift + n, mask=in_row, other=0.0).to(tl.float32)[None, :]


@triton.jit
def norm_kernel(
    x,
    weight,
    shift,
    bias,
    out,
    rows,
    x_stride,
    out_stride,
    eps,
    N: tl.constexpr,
    IS_LAYER: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per BLOCK_M rows. x, out [M, N] (out may be x), weight, shift, bias [N]."""
    # [BM]
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    # [BN]
    n = tl.arange(0, BLOCK_N)
    in_row = n < N
    # [BM, BN]
    inside = (m[:, None] < rows) & in_row[None, :]
    y = tl.load(x + m[:, None] * x_stride + n[None, :], mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(bias + n, mask=in_row, other=0.0).to(tl.float32)[None, :]
    y = normalised(y, weight, shift, n, eps, N, IS_LAYER, HAS_SHIFT)
    tl.store(out + m[:, None] * out_stride + n[None, :], y.to(out.dtype.element_ty), mask=inside)
