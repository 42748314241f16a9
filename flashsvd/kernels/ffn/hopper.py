"""Starts the Hopper feed-forward kernel, and says where it can run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flashsvd.kernels.ffn.operands import FfnOperands, as_matrix
from flashsvd.kernels.starter import Launch
from flashsvd.kernels.tile_candidates import shortlist
from flashsvd.kernels.tma import describable, descriptors, has_gluon

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
    # Of a version that had one wait less, 64 columns took 91 us and 32 columns 112 at rank 240: the first product of 32
    # reads more shared memory than it does sums. A tail's sums leave no registers for 64.
    block_d = 32 if has_tail else 64
    for stages in (4, 3, 2):
        tiles = HopperTiles(block_m, block_d, read, kept, stages, num_warps)
        if tiles.shared_bytes + 1024 <= _BLOCK_BYTES:
            return tiles
    return None


def hopper_candidates(default: HopperTiles, rows: int) -> tuple[HopperTiles, ...]:
    """Tiles worth timing beside the default; a warp takes 16 rows, and a rank with a tail 32 columns."""
    columns = (32,) if default.rank_in[1] or default.rank_out[1] else (default.block_d, 64, 32)
    forms = [(m, d, stages) for d in dict.fromkeys(columns) for m in (128, 64) for stages in (4, 3, 2)]
    changes = ({"block_m": m, "block_d": d, "stages": stages, "num_warps": m // 16} for m, d, stages in forms)

    def fits(tiles: HopperTiles) -> bool:
        return tiles.shared_bytes + 1024 <= _BLOCK_BYTES and (rows > 64 or tiles.block_m == 64)

    return shortlist(default, changes, fits)


def hopper_reads(ffn: FfnOperands) -> bool:
    """Whether TMA can read these tensors, and this Triton can compile for it; the GPU is the caller's business."""
    return has_gluon() and all(describable(matrix) for matrix in (ffn.p, ffn.u1, ffn.v2))


def launch_hopper(ffn: FfnOperands, tiles: HopperTiles, out: torch.Tensor) -> torch.Tensor:
    """Fills `out` [M, R2], which may be p, by `ffn_hopper_kernel`; the plan has said that it can run."""
    prepare_hopper(ffn, tiles, out)(ffn, out)
    return out


def prepare_hopper(
    ffn: FfnOperands, tiles: HopperTiles, out: torch.Tensor
) -> Callable[[FfnOperands, torch.Tensor], None]:
    """What does the same for operands and an output that look like these, there as [..., R]. It keeps no tensor."""
    from flashsvd.kernels.ffn.hopper_kernel import ffn_hopper_kernel

    (read, read_tail), (kept, kept_tail) = tiles.rank_in, tiles.rank_out
    m, d = tiles.block_m, tiles.block_d
    parts = {
        "p_desc": (ffn.p, (m, read)),
        "p_tail_desc": (ffn.p, (m, read_tail)),
        "u_desc": (ffn.u1, (d, read)),
        "u_tail_desc": (ffn.u1, (d, read_tail)),
        "v_desc": (ffn.v2, (kept, d)),
        "v_tail_desc": (ffn.v2, (kept_tail, d)),
    }
    described = {name: descriptors(*part) for name, part in parts.items() if all(part[1])}
    absent = dict.fromkeys(parts.keys() - described.keys())
    launch = Launch(
        ffn_hopper_kernel,
        (math.ceil(ffn.rows / m),),
        (*described, "b1", "out"),
        {
            **absent,
            "rows": ffn.rows,
            "width": ffn.width,
            "rank_out": ffn.rank_out,
            "out_stride": out.stride(0),
            **tiles.constants(ffn.activation, ffn.b1 is not None),
        },
        ffn.p.device,
        num_warps=tiles.num_warps,
    )
    sources = {"p": 0, "u": 1, "v": 2}
    makers = tuple((make, sources[name[0]]) for name, make in described.items())

    def start(ffn: FfnOperands, out: torch.Tensor) -> None:
        # What is contiguous lies in memory as its matrix does.
        p = ffn.p if ffn.p.is_contiguous() else as_matrix(ffn.p)
        matrices = (p, ffn.u1, ffn.v2)
        launch(
            *[make(matrices[source]) for make, source in makers],
            p if ffn.b1 is None else ffn.b1.contiguous(),
            out,
        )

    return start
