"""What is done with a hidden state as a whole, in Triton: the embedding that begins it, and LayerNorm."""

# mypy: allow-untyped-defs
from __future__ import annotations

import triton
import triton.language as tl

from flashsvd.kernels.step.chain import wait


@triton.jit
def embed_kernel(
    tokens,
    table,
    positions,
    place,
    first,
    gamma,
    out,
    scaled,
    out_squares,
    offset,
    width,
    LEARNED: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """Programs (sequence, BLOCK columns): `flashsvd.kernels.step.instructions.Embed`."""
    b, part = tl.program_id(0), tl.program_id(1)
    n = part * BLOCK + tl.arange(0, BLOCK)
    inside = n < width
    wait(CHAINED, width)
    x = tl.load(table + tl.load(tokens + b) * width + n, mask=inside, other=0.0).to(tl.float32)
    if LEARNED:
        at = tl.load(place) - tl.load(first + b) + offset
        x += tl.load(positions + at.to(tl.int64) * width + n, mask=inside, other=0.0).to(tl.float32)
    x = x.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + b * width + n, x.to(out.dtype.element_ty), mask=inside)
    if SCALED:
        shift = tl.load(gamma + n, mask=inside, other=0.0).to(tl.float32)
        tl.store(scaled + b * width + n, (x * shift).to(out.dtype.element_ty), mask=inside)
        tl.store(out_squares + b * tl.num_programs(1) + part, tl.sum(x * x, 0))


@triton.jit
def layer_norm_kernel(x, weight, bias, out, width, eps, BLOCK: tl.constexpr, CHAINED: tl.constexpr):
    """A program per sequence: `flashsvd.kernels.step.instructions.Norm`."""
    b = tl.program_id(0)
    n = tl.arange(0, BLOCK)
    inside = n < width
    shift = tl.load(weight + n, mask=inside, other=0.0).to(tl.float32)
    add = tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    wait(CHAINED, width)
    y = tl.load(x + b * width + n, mask=inside, other=0.0).to(tl.float32)
    y = tl.where(inside, y - tl.sum(y, 0) / width, 0.0)
    y = y * tl.div_rn(1.0, tl.sqrt_rn(tl.sum(y * y, 0) / width + eps)) * shift + add
    tl.store(out + b * width + n, y.to(out.dtype.element_ty), mask=inside)
