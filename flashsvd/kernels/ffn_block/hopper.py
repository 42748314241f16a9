"""Starts the Hopper kernel of the feed-forward sublayer, and says what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flashsvd.kernels.backend import gpu_of
from flashsvd.kernels.ffn.hopper import HopperTiles
from flashsvd.kernels.ffn_block.operands import BlockOperands
from flashsvd.kernels.starter import Launch
from flashsvd.kernels.tma import describable, descriptors, has_gluon

BLOCK_COLUMNS = 64
"""Columns of x, and of the wide activation, at a time."""
FLAGS = ("HAS_B1", "HAS_B2", "HAS_SHIFT", "HAS_ENTRY", "HAS_ENTRY_SHIFT", "HAS_ENTRY_BIAS")
"""What a call has or has not, and the kernel is compiled for."""


@dataclass(frozen=True)
class BlockTiles:
    """Tiles of the kernel: rows, both ranks as padded, rows and columns of a norm at a time, warps."""

    block_m: int
    rank: int
    norm_rows: int
    norm_columns: int
    num_warps: int

    @property
    def ffn(self) -> HopperTiles:
        """Tiles of the Hopper feed-forward kernel that its middle is."""
        ranks = (self.rank, 0)
        return HopperTiles(self.block_m, BLOCK_COLUMNS, ranks, ranks, 2, self.num_warps)

    def constants(self, activation: str, flags: Mapping[str, bool]) -> dict[str, int | bool | str]:
        """What `ffn_block_hopper_kernel` is compiled for; flags by the names in `FLAGS`."""
        return {
            **flags,
            "ACTIVATION": activation,
            "BM": self.block_m,
            "R": self.rank,
            "NR": self.norm_rows,
            "BN": self.norm_columns,
        }


def block_tiles(
    rows: int, hidden: int, rank_in: int, rank_out: int, processors: int = 132
) -> BlockTiles | None:
    """Tiles for a size, None where the kernel takes it not: ranks above 256, a d that is no multiple of 64 or above
    2048. Blocks of rows are as tall as registers allow, unless that would leave processors without one.

    >>> block_tiles(16384, 768, 240, 240)
    BlockTiles(block_m=128, rank=256, norm_rows=16, norm_columns=1024, num_warps=8)
    >>> block_tiles(4096, 128, 104, 64)
    BlockTiles(block_m=64, rank=128, norm_rows=8, norm_columns=256, num_warps=4)
    >>> block_tiles(16384, 768, 300, 240), block_tiles(16384, 100, 240, 240)
    (None, None)
    """
    rank = max(rank_in, rank_out)
    if rank > 256 or hidden % BLOCK_COLUMNS or hidden > 2048:
        return None
    block_m, num_warps = (128, 8) if rows > 64 * processors else (64, 4)
    # 256 columns are a warp's, 16 bytes per thread. Of 1024, two rows per warp: 127.7 us at d 768 in a first
    # version, four 152.2 as they spill, one 140.6.
    columns = max(256, 1 << (hidden - 1).bit_length())
    norm_rows = num_warps * (2 if columns <= 1024 else 1)
    return BlockTiles(block_m, 128 if rank <= 128 else 256, norm_rows, columns, num_warps)


def block_takes(block: BlockOperands) -> bool:
    """Whether the kernel may have such a call, its sizes apart: half types, LayerNorms, matrices that TMA can read, a
    GPU of compute capability 9, a Triton that can compile for it."""
    return (
        block.x.is_cuda
        and block.x.element_size() == 2
        and block.norm.kind == "layer"
        and (block.entry is None or block.entry.kind == "layer")
        and all(describable(matrix) for matrix in (block.matrix(), block.v1, block.u1, block.v2, block.u2))
        and gpu_of(block.x.device).major == 9
        and has_gluon()
    )


def prepare_block(block: BlockOperands, tiles: BlockTiles) -> Callable[[BlockOperands], None]:
    """What writes the result over x of operands that look like these, which `block_takes`; it keeps no tensor."""
    from flashsvd.kernels.ffn_block.hopper_kernel import ffn_block_hopper_kernel

    x, norm, entry = block.matrix(), block.norm, block.entry
    tall, wide = (tiles.rank, BLOCK_COLUMNS), (BLOCK_COLUMNS, tiles.rank)
    makers = tuple(
        descriptors(matrix, tile)
        for matrix, tile in (
            (x, (tiles.block_m, BLOCK_COLUMNS)),
            (block.v1, tall),
            (block.u1, wide),
            (block.v2, tall),
            (block.u2, wide),
        )
    )
    there = (
        block.b1 is not None,
        block.b2 is not None,
        norm.shift is not None,
        entry is not None,
        entry is not None and entry.shift is not None,
        entry is not None and entry.bias is not None,
    )
    launch = Launch(
        ffn_block_hopper_kernel,
        (math.ceil(block.rows / tiles.block_m),),
        (
            *("x_desc", "v1_desc", "u1_desc", "v2_desc", "u2_desc", "x", "b1", "b2"),
            *("weight", "shift", "entry_weight", "entry_shift", "entry_bias"),
        ),
        {
            "rows": block.rows,
            "hidden": block.hidden,
            "width": block.width,
            "x_stride": x.stride(0),
            "eps": float(norm.eps),
            "entry_eps": 0.0 if entry is None else float(entry.eps),
            **tiles.constants(block.activation, dict(zip(FLAGS, there, strict=True))),
        },
        block.x.device,
        num_warps=tiles.num_warps,
    )

    def start(block: BlockOperands) -> None:
        x, v1, u1, b1, v2, u2, b2, _, norm, entry = block
        at_x, at_v1, at_u1, at_v2, at_u2 = makers
        # x stands in for what the kernel then never reads.
        first = (None, None, None) if entry is None else (entry.weight, entry.shift, entry.bias)
        launch(
            at_x(x),
            at_v1(v1),
            at_u1(u1),
            at_v2(v2),
            at_u2(u2),
            x,
            *[x if vector is None else vector for vector in (b1, b2, norm.weight, norm.shift, *first)],
        )

    return start
