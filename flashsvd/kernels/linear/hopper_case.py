"""Ways to compile the Hopper kernel of a product on a machine without one; see `flashsvd.kernels.resources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.kernels.gluon_case import gluon_source
from flashsvd.kernels.linear.hopper import TILES, LinearTiles, linear_candidates


@dataclass(frozen=True)
class LinearCase:
    """One way to compile the kernel."""

    name: str
    dtype: torch.dtype
    biased: bool = True
    tiles: LinearTiles = TILES

    def source(self) -> tuple[Any, dict[str, int]]:
        """What Triton compiles, and its launch options."""
        from flashsvd.kernels.linear.hopper_kernel import linear_hopper_kernel

        tiles = self.tiles
        name = {torch.float16: "fp16", torch.bfloat16: "bf16"}[self.dtype]
        source = gluon_source(
            linear_hopper_kernel,
            self.dtype,
            {
                "x_desc": (tiles.block_m, tiles.block_k),
                "weight_desc": (tiles.block_n, tiles.block_k),
                "out_desc": (tiles.block_m, tiles.block_n),
            },
            {"bias": f"*{name}", **dict.fromkeys(("rows", "width", "depth"), "i32")},
            tiles.constants(self.biased),
        )
        return source, {"num_warps": tiles.num_warps}


def linear_cases() -> tuple[LinearCase, ...]:
    """With a bias and without, and all tiles that tuning may choose."""
    return (
        LinearCase("bf16 linear", torch.bfloat16),
        LinearCase("fp16 linear no bias", torch.float16, biased=False),
        *(
            LinearCase(f"bf16 linear {t.block_m}x{t.block_n}x{t.block_k}", torch.bfloat16, tiles=t)
            for t in linear_candidates()[1:]
        ),
    )
