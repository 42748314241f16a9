"""What products of several sequences become on their way to memory, in Triton; Gluon calls it too.

Products are [BN, BM]: rows n of the weights, sequences m.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from flashsvd.kernels.ffn.triton_parts import activate


@triton.jit
def sum_of(base, step, place, SPLITS: tl.constexpr):
    """What the programs of one block left, added in order."""
    y = tl.load(base + place, cache_modifier=".cg")
    for split in tl.static_range(1, SPLITS):
        y += tl.load(base + split * step + place, cache_modifier=".cg")
    return y


@triton.jit
def write(
    y, up, total, n, m, bias, bias_up, residual, gamma, out, scaled, out_squares, batch, rows, out_stride, norm_width,
    eps, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, NORMED: tl.constexpr,
    NORMED_UP: tl.constexpr, ADDED: tl.constexpr, SCALED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The options of `flashsvd.kernels.step.instructions.Rows`, of the sums y and, where GATED, up.

    total [BM]: the squares of x, summed, where NORMED or NORMED_UP. out_squares [batch, blocks].
    """
    in_n, in_m = n < rows, m < batch
    inside = in_n[:, None] & in_m[None, :]
    at = m[None, :] * out_stride + n[:, None]
    if NORMED or NORMED_UP:
        rstd = tl.div_rn(1.0, tl.sqrt_rn(total / norm_width + eps))
    if NORMED:
        y = y * rstd[None, :]
    if HAS_BIAS:
        y += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)[:, None]
    if ACTIVATION != "none":
        y = activate(y, ACTIVATION, EXACT, False)
    if GATED:
        if NORMED_UP:
            up = up * rstd[None, :]
        if HAS_BIAS:
            up += tl.load(bias_up + n, mask=in_n, other=0.0).to(tl.float32)[:, None]
        y = y * up
    if ADDED:
        y += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        y = y.to(out.dtype.element_ty).to(tl.float32)
        shift = tl.load(gamma + n, mask=in_n, other=0.0).to(tl.float32)
        tl.store(scaled + at, (y * shift[:, None]).to(scaled.dtype.element_ty), mask=inside)
        own = tl.sum(tl.where(inside, y * y, 0.0), 0)
        tl.store(out_squares + m * tl.num_programs(0) + tl.program_id(0), own, mask=in_m)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)
