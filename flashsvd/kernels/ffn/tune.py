"""Opt-in choice of the feed-forward kernels' tiles; see `flashsvd.kernels.tuning`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from flashsvd.kernels.ffn.hopper import HopperTiles, hopper_candidates, prepare_hopper
from flashsvd.kernels.ffn.operands import FfnOperands
from flashsvd.kernels.ffn.tiles import FfnTiles, ffn_candidates
from flashsvd.kernels.tiles import device_shared_bytes
from flashsvd.kernels.tuning import Trial, choose, key_of, like_output


def tuned_hopper(ffn: FfnOperands, default: HopperTiles, out: torch.Tensor) -> HopperTiles:
    """Tiles of the Hopper kernel for operands as matrices: `default` unless tuning is on."""

    def trial() -> Trial[HopperTiles]:
        other = like_output(out)

        def start(tiles: HopperTiles) -> Callable[[], object]:
            run = prepare_hopper(ffn, tiles, other)
            return lambda: run(ffn, other)

        return Trial("ffn hopper", _key(ffn, out), hopper_candidates(default, ffn.rows), other, start)

    return choose(default, trial, ffn.p)


def tuned_triton(ffn: FfnOperands, default: FfnTiles, out: torch.Tensor) -> FfnTiles:
    """Tiles of the Triton kernel for operands as matrices: `default` unless tuning is on.

    Half types that are loaded in pieces under 16 bytes keep it: Triton 3.6 has made wrong code of such loads.
    """

    def trial() -> Trial[FfnTiles]:
        from flashsvd.kernels.ffn.launch import prepare_launch

        other = like_output(out)

        def start(tiles: FfnTiles) -> Callable[[], object]:
            run = prepare_launch(ffn, tiles, other)
            return lambda: run(ffn, other)

        candidates: tuple[FfnTiles, ...] = (default,)
        if ffn.p.element_size() >= 4 or _align(ffn, out) == 8:
            limit = device_shared_bytes(ffn.p.device)
            candidates = ffn_candidates(
                default, ffn.rows, ffn.p.dtype, out_width=ffn.out_width, shared_limit_bytes=limit
            )
        return Trial("ffn", _key(ffn, out), candidates, other, start)

    return choose(default, trial, ffn.p)


def _align(ffn: FfnOperands, out: torch.Tensor) -> int:
    """Elements, at most 8, on whole multiples of which all rows start that a kernel reads or writes, and end."""
    matrices = [x for x in (ffn.p, ffn.u1, ffn.v2, ffn.up_p, ffn.up_u, ffn.u2, out) if x is not None]
    rows = [number for x in matrices for number in (*x.stride()[:-1], x.shape[-1])]
    starts = [x.data_ptr() // x.element_size() for x in matrices]
    return math.gcd(8, *rows, *starts)


def _key(ffn: FfnOperands, out: torch.Tensor) -> str:
    biases = (ffn.b1 is not None, ffn.up_b is not None, ffn.b2 is not None)
    names = ("rows", "width", "rank_in", "rank_up", "rank_out", "out_width", "activation")
    sizes = {name: getattr(ffn, name) for name in names}
    return key_of(ffn.p.dtype, **sizes, bias=biases, align=_align(ffn, out))
