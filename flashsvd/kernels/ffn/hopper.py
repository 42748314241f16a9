"""Starts the Hopper feed-forward kernel, and says where it can run."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from flashsvd.kernels.backend import on_device
from flashsvd.kernels.ffn.operands import FfnOperands

_RANK_PARTS = ((64, 0), (128, 0), (256, 0), (256, 64))
"""Part A and part B that hold a rank on chip. 320 is the most: 160 registers of sums per thread."""
_BLOCK_BYTES = 227 << 10


@dataclass(frozen=True)
class HopperTiles:
    """Tiles of the Hopper kernel: rows, columns of the wide activation, both rank's parts, buffers, warps."""

    block_m: int
    block_d: int
    rank_in: tuple[int, int]
    rank_out: tuple[int, int]
    stages: int
    num_warps: int

    @property
    def shared_bytes(self) -> int:
        """Of a half type; without the barriers."""
        read = sum(self.rank_in)
        return 2 * (self.block_m * read + self.stages * self.block_d * (read + sum(self.rank_out)))

    def constants(self, activation: str, has_bias: bool) -> dict[str, int | bool | str]:
        """What `ffn_hopper_kernel` is compiled for."""
        return {
            "HAS_BIAS": has_bias,
            "ACTIVATION": activation,
            "BM": self.block_m,
            "BD": self.block_d,
            "R1A": self.rank_in[0],
            "R1B": self.rank_in[1],
            "R2A": self.rank_out[0],
            "R2B": self.rank_out[1],
            "STAGES": self.stages,
        }


def hopper_tiles(rows: int, rank_in: int, rank_out: int, processors: int = 132) -> HopperTiles | None:
    """Tiles for a size, None where a rank is too large. Every block of rows reads all weights, so blocks are as tall
    as registers allow, unless that would leave processors without one.

    >>> hopper_tiles(16384, 240, 240)
    HopperTiles(block_m=128, block_d=64, rank_in=(256, 0), rank_out=(256, 0), stages=2, num_warps=8)
    >>> hopper_tiles(16384, 312, 312)
    HopperTiles(block_m=128, block_d=32, rank_in=(256, 64), rank_out=(256, 64), stages=3, num_warps=8)
    >>> hopper_tiles(16384, 400, 240)
    """
    read, kept = (
        next((parts for parts in _RANK_PARTS if rank <= sum(parts)), None) for rank in (rank_in, rank_out)
    )
    if read is None or kept is None:
        return None
    has_tail = read[1] > 0 or kept[1] > 0
    tall = rows > 64 * processors or has_tail
    block_m, num_warps = (128, 8) if tall else (64, 4)
    # 64 columns 91 us, 32 columns 112 us at rank 240: the first product of 32 reads more shared memory than it does
    # sums. A tail's sums leave no registers for 64.
    block_d = 32 if has_tail else 64
    for stages in (4, 3, 2):
        tiles = HopperTiles(block_m, block_d, read, kept, stages, num_warps)
        if tiles.shared_bytes + 1024 <= _BLOCK_BYTES:
            return tiles
    return None


def hopper_reads(ffn: FfnOperands) -> bool:
    """Whether TMA can read these tensors, and this Triton can compile for it; the GPU is the caller's business."""
    return _has_gluon() and all(_describable(matrix) for matrix in (ffn.p, ffn.u1, ffn.v2))


def launch_hopper(ffn: FfnOperands, tiles: HopperTiles, out: torch.Tensor) -> torch.Tensor:
    """Fills `out` [M, R2], which may be p, by `ffn_hopper_kernel`; the plan has said that it can run."""
    from flashsvd.kernels.ffn.hopper_kernel import ffn_hopper_kernel

    p, u1, v2 = ffn.p, ffn.u1, ffn.v2
    (read, read_tail), (kept, kept_tail) = tiles.rank_in, tiles.rank_out
    m, d = tiles.block_m, tiles.block_d
    with on_device(p):
        ffn_hopper_kernel[(math.ceil(ffn.rows / m),)](
            _descriptor(p, m, read),
            _descriptor(p, m, read_tail) if read_tail else None,
            _descriptor(u1, d, read),
            _descriptor(u1, d, read_tail) if read_tail else None,
            _descriptor(v2, kept, d),
            _descriptor(v2, kept_tail, d) if kept_tail else None,
            p if ffn.b1 is None else ffn.b1.contiguous(),
            out,
            ffn.rows,
            ffn.width,
            ffn.rank_out,
            out.stride(0),
            **tiles.constants(ffn.activation, ffn.b1 is not None),
            num_warps=tiles.num_warps,
        )
    return out


def _describable(matrix: torch.Tensor) -> bool:
    """Whether TMA can read it: last stride 1, rows that start on 16 bytes."""
    rows_at = matrix.stride(0) * matrix.element_size()
    return matrix.stride(1) == 1 and rows_at % 16 == 0 and matrix.data_ptr() % 16 == 0


def _descriptor(matrix: torch.Tensor, rows: int, columns: int) -> Any:
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = layout_of(rows, columns, matrix.dtype)
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns], layout)


@functools.cache
def layout_of(rows: int, columns: int, dtype: torch.dtype) -> Any:
    """How a tile lies in shared memory."""
    from triton.experimental.gluon import language as gl

    kind = gl.bfloat16 if dtype == torch.bfloat16 else gl.float16
    return gl.NVMMASharedLayout.get_default_for([rows, columns], kind)


@functools.cache
def _has_gluon() -> bool:
    try:
        return find_spec("triton.experimental.gluon.language.nvidia.hopper") is not None
    except ModuleNotFoundError:
        return False
