"""Starts the Triton norm kernel."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from flashsvd.kernels.arguments import check_compiled
from flashsvd.kernels.norm.triton_kernel import norm_kernel
from flashsvd.kernels.starter import Launch
from flashsvd.kernels.tile_candidates import row_candidates
from flashsvd.kernels.tiles import RowTiles, row_tiles
from flashsvd.kernels.tuning import Trial, choose, key_of, like_output

Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor], object]


def prepare_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    bias: torch.Tensor | None,
    kind: str,
    out: torch.Tensor,
) -> Start:
    """What writes norm(x + bias)·weight + shift of an x [M, N] to an out [M, N] that look like these.

    It takes x, weight, shift, bias and out, x and out also as [..., N]. Raises InputError for float64.
    """
    check_compiled(x)
    rows, width = x.shape
    default = RowTiles(*row_tiles(width))

    def trial() -> Trial[RowTiles]:
        key = key_of(
            x.dtype, rows=rows, width=width, kind=kind, shift=shift is not None, bias=bias is not None
        )
        other = like_output(out)

        def start(tiles: RowTiles) -> Callable[[], object]:
            run = _prepared(x, shift, eps, bias, kind, other, tiles)
            return lambda: run(x, weight, shift, bias, other)

        return Trial("norm", key, row_candidates(default, rows), other, start)

    return _prepared(x, shift, eps, bias, kind, out, choose(default, trial, x))


def _prepared(
    x: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    bias: torch.Tensor | None,
    kind: str,
    out: torch.Tensor,
    tiles: RowTiles,
) -> Start:
    rows, width = x.shape
    launch = Launch(
        norm_kernel,
        (math.ceil(rows / tiles.block_m),),
        ("x", "weight", "shift", "bias", "out"),
        {
            "rows": rows,
            "x_stride": x.stride(0),
            "out_stride": out.stride(0),
            "eps": eps,
            "N": width,
            "IS_LAYER": kind == "layer",
            "HAS_SHIFT": shift is not None,
            "HAS_BIAS": bias is not None,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
        },
        x.device,
        num_warps=tiles.num_warps,
        num_stages=1,
    )

    def start(
        x: torch.Tensor,
        weight: torch.Tensor,
        shift: torch.Tensor | None,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        # x stands in for what the kernel then never reads.
        launch(x, weight, x if shift is None else shift, x if bias is None else bias, out)

    return start
