"""Ways to compile the Hopper feed-forward kernel on a machine without one; see `flashsvd.kernels.resources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.kernels.ffn.hopper import hopper_tiles
from flashsvd.kernels.gluon_case import gluon_source


@dataclass(frozen=True)
class HopperCase:
    """One way to compile the kernel."""

    name: str
    dtype: torch.dtype
    rank_in: int
    rank_out: int
    activation: str
    rows: int = 16384

    def source(self) -> tuple[Any, dict[str, int]]:
        """What Triton compiles, and its launch options."""
        from flashsvd.kernels.ffn.hopper_kernel import ffn_hopper_kernel

        tiles = hopper_tiles(self.rows, self.rank_in, self.rank_out)
        assert tiles is not None
        name = {torch.float16: "fp16", torch.bfloat16: "bf16"}[self.dtype]
        (read, read_tail), (kept, kept_tail), d = tiles.rank_in, tiles.rank_out, tiles.block_d
        described = {
            "p_desc": (tiles.block_m, read),
            "p_tail_desc": (tiles.block_m, read_tail),
            "u_desc": (d, read),
            "u_tail_desc": (d, read_tail),
            "v_desc": (kept, d),
            "v_tail_desc": (kept_tail, d),
        }
        source = gluon_source(
            ffn_hopper_kernel,
            self.dtype,
            {part: tile if all(tile) else None for part, tile in described.items()},
            {
                "b1": f"*{name}",
                "out": f"*{name}",
                **dict.fromkeys(("rows", "width", "rank_out", "out_stride"), "i32"),
            },
            tiles.constants(self.activation, has_bias=True),
        )
        return source, {"num_warps": tiles.num_warps}


def hopper_cases() -> tuple[HopperCase, ...]:
    """Tall and short blocks, a rank with a tail, small ranks, every kind of activation."""
    return (
        HopperCase("bf16 hopper R1 240 R2 240 gelu", torch.bfloat16, 240, 240, "gelu"),
        HopperCase("bf16 hopper R1 240 R2 240 few rows", torch.bfloat16, 240, 240, "gelu", rows=4096),
        HopperCase("fp16 hopper R1 312 R2 312 gelu_tanh", torch.float16, 312, 312, "gelu_tanh"),
        HopperCase("bf16 hopper R1 128 R2 40 silu", torch.bfloat16, 128, 40, "silu"),
    )
