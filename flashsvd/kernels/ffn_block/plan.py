"""Whether the feed-forward sublayer goes by its one kernel or by the other ops: a pure function of its sizes.

The rates were fitted on one H200 (bf16, M 16384, d 768, D 3072, ranks 240) to a first version of the kernel, launched
one by one: 127.7 us with both norms, 120.6 with the last alone, 112.5 without; 151.5 us for norm, product, feed-forward
kernel, product and norm. As it is now, in a CUDA graph: 131 and 119, and the others 147.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from flashsvd.kernels.ffn.plan import ffn_plan, hopper_us
from flashsvd.kernels.ffn_block.hopper import BlockTiles, block_tiles

_OUTER_FLOPS_PER_US = 4.2e6
"""Of the products with v1 and u2 in one program, by ranks as padded."""
_NORM_US = 7.5
"""Of one norm of 128 rows of 768 in one program."""
_PRODUCT_BYTES_PER_US = 2.9e6
"""Of cuBLAS's products with v1 and u2, which are as fast as memory."""
_NORM_BYTES_PER_US = 3.7e6
_LAUNCH_US = 1.0
"""Between two kernels on the GPU."""
_TOLERANCE = 1.1
"""The kernel saves up to four launches, which cost 8 to 18 us of CPU each where no graph replays them."""


@dataclass(frozen=True)
class BlockPlan:
    """How one call runs. `why` is a sentence for people."""

    tiles: BlockTiles | None
    """Of the one kernel; None where the other ops run one after the other."""
    predicted_us: float | None
    """None where nothing was measured: all but half types on compute capability 9.0."""
    why: str


@functools.lru_cache(maxsize=4096)
def block_plan(
    rows: int,
    hidden: int,
    width: int,
    rank_in: int,
    rank_out: int,
    dtype: torch.dtype,
    device_kind: str,
    *,
    entry: bool = False,
    multiprocessors: int = 132,
    takes: bool = True,
    activation: str = "gelu",
) -> BlockPlan:
    """The way of a sublayer over M `rows` of d `hidden`, D `width`, and ranks R1 and R2 `rank_in`, `rank_out`.

    device_kind: as of `flashsvd.kernels.ffn.ffn_plan`. entry: whether there is a norm before it. takes: what
    `flashsvd.kernels.ffn_block.hopper.block_takes` says. Raises InputError as `ffn_plan` does.

    >>> block_plan(16384, 768, 3072, 240, 240, torch.bfloat16, "sm_90", entry=True).why
    'one kernel: about 130 us, against 154 us of 5 after one another'
    >>> block_plan(200, 768, 3072, 240, 240, torch.bfloat16, "sm_90").tiles
    """
    aligned = rank_in % 8 == 0 and width % 8 == 0
    ffn = ffn_plan(
        rows,
        width,
        rank_in,
        rank_out,
        dtype,
        device_kind,
        multiprocessors=multiprocessors,
        aligned=aligned,
        wide_loads=aligned,
        activation=activation,
    )
    if device_kind != "sm_90" or dtype.itemsize != 2 or ffn.predicted_us is None:
        return BlockPlan(
            None, None, "the other ops one after another, as the kernel is for Hopper's half types"
        )
    norms = 2 if entry else 1
    launches = 3 + norms
    outer_bytes = (hidden + rank_in + 2 * hidden + rank_out) * rows * dtype.itemsize
    norm_bytes = 2 * rows * hidden * dtype.itemsize
    composed_us = (
        ffn.predicted_us
        + outer_bytes / _PRODUCT_BYTES_PER_US
        + norms * norm_bytes / _NORM_BYTES_PER_US
        + (launches - 1) * _LAUNCH_US
    )
    tiles = block_tiles(rows, hidden, rank_in, rank_out, multiprocessors) if takes else None
    if tiles is None:
        why = f"{launches} kernels after one another: about {composed_us:.0f} us, as the one does not take this call"
        return BlockPlan(None, composed_us, why)
    program_us = (
        hopper_us(tiles.ffn, width)
        + 4 * tiles.block_m * hidden * tiles.rank / _OUTER_FLOPS_PER_US
        + norms * _NORM_US * tiles.block_m * hidden / (128 * 768)
    )
    kernel_us = -(-rows // (tiles.block_m * multiprocessors)) * program_us
    if kernel_us <= composed_us * _TOLERANCE:
        why = f"one kernel: about {kernel_us:.0f} us, against {composed_us:.0f} us of {launches} after one another"
        return BlockPlan(tiles, kernel_us, why)
    why = (
        f"{launches} kernels after one another: about {composed_us:.0f} us, against {kernel_us:.0f} us of one"
    )
    return BlockPlan(None, composed_us, why)
