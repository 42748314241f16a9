"""Ways to compile the Hopper rank-space kernel on a machine without one; see `flashsvd.kernels.resources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.kernels.gluon_case import gluon_source
from flashsvd.kernels.rank_space.hopper import hopper_tiles


@dataclass(frozen=True)
class RankSpaceHopperCase:
    """One way to compile the kernel."""

    name: str
    dtype: torch.dtype
    score: int
    value: int
    masked: bool = False
    seq: int = 512

    def source(self) -> tuple[Any, dict[str, int]]:
        """What Triton compiles, and its launch options."""
        from flashsvd.kernels.rank_space.hopper_kernel import rank_space_hopper_kernel

        tiles = hopper_tiles(self.seq, self.score, self.value)
        assert tiles is not None
        name = {torch.float16: "fp16", torch.bfloat16: "bf16"}[self.dtype]
        source = gluon_source(
            rank_space_hopper_kernel,
            self.dtype,
            {
                "q_desc": (1, tiles.block_m, tiles.score),
                "k_desc": (1, tiles.block_n, tiles.score),
                "v_desc": (1, tiles.block_n, tiles.value),
            },
            {
                "out": f"*{name}",
                "key_mask": "*u8",
                **dict.fromkeys(("batch", "seq", "heads", "out_stride_b", "out_stride_s"), "i32"),
                "scale_log2": "fp32",
            },
            {**tiles.constants(self.score, self.value, self.masked, self.seq), "STRIDE_ALIGN": 16},
        )
        return source, {"num_warps": tiles.num_warps}


def rank_space_hopper_cases() -> tuple[RankSpaceHopperCase, ...]:
    """Every split of the score columns, masks, uneven lengths, long sequences."""
    return (
        RankSpaceHopperCase("bf16 rank space hopper r40", torch.bfloat16, 40, 40),
        RankSpaceHopperCase("bf16 rank space hopper r32 mask", torch.bfloat16, 32, 32, masked=True),
        RankSpaceHopperCase("fp16 rank space hopper r64 r24", torch.float16, 64, 24, seq=1025),
        RankSpaceHopperCase("bf16 rank space hopper r32 long", torch.bfloat16, 32, 32, seq=16384),
        RankSpaceHopperCase(
            "bf16 rank space hopper r40 short mask", torch.bfloat16, 40, 64, masked=True, seq=17
        ),
    )
