"""Calls of the ops that can be made again and again."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flashsvd.kernels import BlockNorm, HeadLayout, flash_svd_ffn, flash_svd_ffn_block, rank_space_attention
from flashsvd.kernels.backend import gpu_of
from flashsvd.kernels.ffn import flash_svd_glu
from flashsvd.kernels.linear import linear
from flashsvd.kernels.norm import fused_norm
from flashsvd.kernels.rebuild import Run, rebuild_rotated
from flashsvd.kernels.rotary import rotate_heads

LAYOUT = HeadLayout((8, 16))
Call = Callable[[], torch.Tensor]


def at(start: int, *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """Random numbers that start `start` elements behind 64 bytes."""
    size = torch.Size(shape).numel()
    held = torch.empty(size + start, dtype=dtype, device=device)
    return held[start:].view(shape).copy_(torch.randn(shape))


def norm_call(
    start: int, rows: int, width: int, dtype: torch.dtype, backend: str | None, device: str
) -> Call:
    x, weight = (at(start, *shape, dtype=dtype, device=device) for shape in ((2, rows, width), (width,)))
    bias = weight if rows % 2 else None
    return lambda: fused_norm(x, weight, None, 1e-5, bias=bias, backend=backend)


def rank_space_call(
    start: int, rows: int, width: int, dtype: torch.dtype, backend: str | None, device: str
) -> Call:
    packed = at(start, 2, rows, 72 + 8 * (width // 8), dtype=dtype, device=device)
    q, k, v = packed[..., :72].split(24, -1)
    mask = (torch.arange(rows) % 5 < 4).expand(2, rows).to(device) if rows % 2 else None
    options = {"key_mask": mask, "causal": rows == 17, "backend": backend}
    return lambda: rank_space_attention(q, k, v, score=LAYOUT, value=LAYOUT, **options)


def ffn_call(start: int, rows: int, width: int, dtype: torch.dtype, backend: str | None, device: str) -> Call:
    shapes = ((2, rows, 16), (width, 16), (width,), (24, width))
    p, u1, b1, v2 = (at(start, *shape, dtype=dtype, device=device) for shape in shapes)
    b1 = b1 if rows % 2 else None  # type: ignore[assignment]
    return lambda: flash_svd_ffn(p, u1, b1, v2, activation="gelu", backend=backend)


def glu_call(start: int, rows: int, width: int, dtype: torch.dtype, backend: str | None, device: str) -> Call:
    shapes = ((rows, 16), (width, 16), (rows, 8), (width, 8), (24, width))
    p, u, up_p, up_u, v2 = (at(start, *shape, dtype=dtype, device=device) for shape in shapes)
    return lambda: flash_svd_glu(p, u, None, up_p, up_u, None, v2, activation="silu", backend=backend)


def ffn_block_call(
    start: int, rows: int, width: int, dtype: torch.dtype, backend: str | None, device: str
) -> Call:
    shapes = ((2, rows, 32), (16, 32), (width, 16), (width,), (16, width), (32, 16), (32,))
    x, v1, u1, b1, v2, u2, weight = (at(start, *shape, dtype=dtype, device=device) for shape in shapes)
    b1 = b1 if rows % 2 else None  # type: ignore[assignment]

    def call() -> torch.Tensor:
        norm = BlockNorm(weight, weight, 1e-5)
        entry = norm._replace(bias=weight) if rows % 2 else None
        return flash_svd_ffn_block(
            x.clone(), v1, u1, b1, v2, u2, weight, norm, entry=entry, activation="gelu", backend=backend
        )

    return call


def linear_call(
    start: int, rows: int, width: int, dtype: torch.dtype, backend: str | None, device: str
) -> Call:
    # On a GPU so wide that a Hopper one takes it, with its programs busy.
    columns = 24 if device == "cpu" else 256 * gpu_of(torch.device(device)).multiprocessors
    shapes = ((2, rows, 256 + width), (columns, 256 + width), (columns,))
    x, weight, bias = (at(start, *shape, dtype=dtype, device=device) for shape in shapes)
    bias = bias if rows % 2 else None  # type: ignore[assignment]
    return lambda: linear(x, weight, bias, backend=backend)


def rotary_call(
    start: int, rows: int, width: int, dtype: torch.dtype, backend: str | None, device: str
) -> Call:
    packed = at(start, 2, rows, 48 + 8 * (width // 8), dtype=dtype, device=device)
    cos, sin = (at(start, 1 + rows % 2, rows, 8, dtype=dtype, device=device) for _ in range(2))

    def call() -> torch.Tensor:
        turned = packed.clone()
        rotate_heads(turned[..., :32], turned[..., 32:48], cos, sin, backend=backend)
        return turned

    return call


def rebuild_call(
    start: int, rows: int, width: int, dtype: torch.dtype, backend: str | None, device: str
) -> Call:
    runs = (Run(head=0, count=3, rank=8 * (1 + width // 16 % 4), at=0),)
    columns = runs[0].columns.stop
    shapes = (
        (2, rows, columns + 8),
        (columns, 32),
        (96,),
        (1 + rows % 2, rows, 32),
        (1 + rows % 2, rows, 32),
    )
    p, second, bias, cos, sin = (at(start, *shape, dtype=dtype, device=device) for shape in shapes)
    bias = bias if rows % 2 else None  # type: ignore[assignment]
    return lambda: rebuild_rotated(p, second, bias, cos, sin, runs=runs, backend=backend)


CALLS = (norm_call, rank_space_call, ffn_call, glu_call, rotary_call, rebuild_call)
SEQUENCES = (ffn_block_call,)
"""Calls that start several kernels one after another."""
PRODUCTS = (linear_call,)
"""Calls that start no kernel of this package but on a Hopper GPU."""
