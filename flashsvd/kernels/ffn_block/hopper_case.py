"""Ways to compile the Hopper kernel of the feed-forward sublayer on a machine without one; see
`flashsvd.kernels.resources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.kernels.ffn_block.hopper import BLOCK_COLUMNS, FLAGS, block_tiles
from flashsvd.kernels.gluon_case import gluon_source


@dataclass(frozen=True)
class BlockCase:
    """One way to compile the kernel: with all that a call may have, or without what `without` names of `FLAGS`."""

    name: str
    dtype: torch.dtype
    hidden: int
    rank: int
    activation: str
    rows: int = 16384
    without: tuple[str, ...] = ()

    def source(self) -> tuple[Any, dict[str, int]]:
        """What Triton compiles, and its launch options."""
        from flashsvd.kernels.ffn_block.hopper_kernel import ffn_block_hopper_kernel

        tiles = block_tiles(self.rows, self.hidden, self.rank, self.rank)
        assert tiles is not None
        name = {torch.float16: "fp16", torch.bfloat16: "bf16"}[self.dtype]
        tall, wide = (tiles.rank, BLOCK_COLUMNS), (BLOCK_COLUMNS, tiles.rank)
        vectors = ("b1", "b2", "weight", "shift", "entry_weight", "entry_shift", "entry_bias")
        source = gluon_source(
            ffn_block_hopper_kernel,
            self.dtype,
            {
                "x_desc": (tiles.block_m, BLOCK_COLUMNS),
                "v1_desc": tall,
                "u1_desc": wide,
                "v2_desc": tall,
                "u2_desc": wide,
            },
            {
                **dict.fromkeys(("x", *vectors), f"*{name}"),
                **dict.fromkeys(("rows", "hidden", "width", "x_stride"), "i32"),
                **dict.fromkeys(("eps", "entry_eps"), "fp32"),
            },
            tiles.constants(self.activation, {flag: flag not in self.without for flag in FLAGS}),
        )
        return source, {"num_warps": tiles.num_warps}


def block_cases() -> tuple[BlockCase, ...]:
    """Tall and short blocks, both sizes of ranks, norms of one row per warp and of two, every kind of activation."""
    return (
        BlockCase("bf16 block d 768 R 240 gelu", torch.bfloat16, 768, 240, "gelu"),
        BlockCase("bf16 block d 768 R 240 few rows", torch.bfloat16, 768, 240, "gelu", rows=4096),
        BlockCase(
            "fp16 block d 1024 R 256 gelu_tanh", torch.float16, 1024, 256, "gelu_tanh", without=("HAS_B1",)
        ),
        BlockCase("bf16 block d 128 R 104 silu", torch.bfloat16, 128, 104, "silu", without=FLAGS),
        BlockCase("fp16 block d 2048 R 240 relu", torch.float16, 2048, 240, "relu", without=FLAGS[3:]),
    )
