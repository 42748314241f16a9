"""Starts the Hopper kernel of a product, and says what it takes and where it pays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flashsvd.kernels.backend import gpu_of
from flashsvd.kernels.starter import Launch
from flashsvd.kernels.tile_candidates import shortlist
from flashsvd.kernels.tiles import HOPPER_SHARED_BYTES
from flashsvd.kernels.tma import describable, descriptors, has_gluon
from flashsvd.kernels.tuning import Trial, choose, key_of, like_output

Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor], object]
"""Multiplies x by weight, adds bias and writes to out, which comes last."""

LEAST_DEPTH = 256
"""K from which on the kernel may win: at 240 it took 19.0 us where cuBLAS took 18.3."""
LEAST_BUSY = 0.85
"""The share of the multiprocessors that have a tile, over all turns, from which on it may win."""


@dataclass(frozen=True)
class LinearTiles:
    """Tiles of the Hopper kernel: rows and columns of the output, columns of x and weight at a time, stages of these,
    warps."""

    block_m: int
    block_n: int
    block_k: int
    stages: int
    num_warps: int = 8

    @property
    def shared_bytes(self) -> int:
        """An estimate from above, of a half type: the stages, the tile on its way out, barriers."""
        read = self.stages * (self.block_m + self.block_n) * self.block_k
        return 2 * (read + self.block_m * self.block_n) + 1024

    def count(self, rows: int, width: int) -> int:
        """Tiles of an output [rows, width]."""
        return math.ceil(rows / self.block_m) * math.ceil(width / self.block_n)

    def constants(self, biased: bool) -> dict[str, int | bool]:
        """What `linear_hopper_kernel` is compiled for."""
        return {
            "HAS_BIAS": biased,
            "BM": self.block_m,
            "BN": self.block_n,
            "BK": self.block_k,
            "STAGES": self.stages,
        }


TILES = LinearTiles(256, 128, 64, 3)


def linear_candidates() -> tuple[LinearTiles, ...]:
    """Tiles worth timing beside the default, all within a tenth of it at [8192, 768] by [1440, 768]."""
    forms = (
        {"block_m": 128, "block_n": 256},
        {"block_m": 128, "block_n": 256, "block_k": 32, "stages": 6},
        {"block_m": 128, "block_n": 128, "stages": 4},
    )
    return shortlist(TILES, forms, lambda tiles: tiles.shared_bytes <= HOPPER_SHARED_BYTES)


def worth_it(rows: int, width: int, depth: int, multiprocessors: int) -> bool:
    """Whether the kernel is to multiply x [M, K] by weight [N, K] in cuBLAS's place, M `rows`, N `width`, K `depth`.

    Where its tiles outnumber the multiprocessors, cuBLAS (of torch 2.11 for CUDA 13) has its programs stay as well and
    take tiles by a counter, which it clears before every product: that memset and the gaps around it cost 5 us inside
    a CUDA graph. This kernel is as fast as cuBLAS's and clears nothing: M 8192, N 1440, K 768 with a bias, bf16, takes
    32.2 us on an H200, cuBLAS 36 between other kernels, of which 30.5 are its kernel. In a chain of products alone,
    where cuBLAS's gaps are smaller, it is 30.1 us to 31.6, for M 16384 60.2 to 59.7 and for N 2304 52.4 to 52.7.

    With fewer tiles nothing is cleared and cuBLAS wins: M 16384, N 240, K 768 takes it 11.3 us and this kernel 12.2. A
    last turn that leaves multiprocessors idle, or few steps per tile, costs more than is saved: M 8192, N 768, K 480
    (192 tiles in two turns of 132) 13.2 us and 15.3, M 16384, N 768, K 240 18.3 and 19.0, both added to a residual.
    With GELU before the store, M 4096, N 3072, K 312 took 25.7 us, and cuBLAS's own 23.5 with its memset.

    >>> [worth_it(*sizes, 132) for sizes in ((8192, 1440, 768), (16384, 240, 768), (8192, 768, 480))]
    [True, False, False]
    """
    tiles = TILES.count(rows, width)
    turns = math.ceil(tiles / multiprocessors)
    return tiles > multiprocessors and tiles >= LEAST_BUSY * turns * multiprocessors and depth >= LEAST_DEPTH


def linear_takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernel takes x [..., K] and weight [N, K]: half types, rows of x at one distance, tensors that TMA
    can read and an output that it can write, on a GPU of compute capability 9, and of sizes that are `worth_it`."""
    if not x.is_cuda or x.element_size() != 2 or x.numel() == 0 or weight.shape[0] % 8:
        return False
    gpu = gpu_of(x.device)
    rows = _rows(x)
    return (
        gpu.major == 9
        and rows is not None
        and worth_it(rows.shape[0], weight.shape[0], x.shape[-1], gpu.multiprocessors)
        and describable(rows)
        and describable(weight)
        and has_gluon()
    )


def prepare_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> Start:
    """What multiplies tensors that look like these, and have an out [..., N] that lies in memory like this one.

    The rows of out, too, are at one distance, a multiple of 16 bytes. It keeps none of the tensors.
    """

    def trial() -> Trial[LinearTiles]:
        other = like_output(out)
        width, depth = weight.shape
        rows = x.numel() // depth
        key = key_of(x.dtype, rows=rows, width=width, depth=depth, bias=bias is not None)

        def start(tiles: LinearTiles) -> Callable[[], object]:
            run = by_tiles(x, weight, bias, other, tiles)
            return lambda: run(x, weight, bias, other)

        return Trial("linear hopper", key, linear_candidates(), other, start)

    return by_tiles(x, weight, bias, out, choose(TILES, trial, x))


def by_tiles(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    tiles: LinearTiles,
) -> Start:
    """As `prepare_linear`, with tiles given."""
    from flashsvd.kernels.linear.hopper_kernel import linear_hopper_kernel

    rows, target = _rows(x), _rows(out)
    assert rows is not None and target is not None
    at_x = descriptors(rows, (tiles.block_m, tiles.block_k))
    at_weight = descriptors(weight, (tiles.block_n, tiles.block_k))
    at_out = descriptors(target, (tiles.block_m, tiles.block_n))
    count = tiles.count(*target.shape)
    launch = Launch(
        linear_hopper_kernel,
        (min(count, gpu_of(x.device).multiprocessors),),
        ("x_desc", "weight_desc", "out_desc", "bias"),
        {
            "rows": rows.shape[0],
            "width": weight.shape[0],
            "depth": weight.shape[1],
            **tiles.constants(bias is not None),
        },
        x.device,
        num_warps=tiles.num_warps,
    )

    def start(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        # x stands in for a bias, which the kernel then never reads.
        launch(at_x(x), at_weight(weight), at_out(out), x if bias is None else bias)

    return start


def _rows(x: torch.Tensor) -> torch.Tensor | None:
    """[..., K] as [M, K] without a copy; None where the rows are not at one distance."""
    try:
        return x.view(-1, x.shape[-1])
    except RuntimeError:
        return None
