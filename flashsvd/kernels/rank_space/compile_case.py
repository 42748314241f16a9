"""Ways to compile the rank-space kernel for a GPU that need not be there; see `flashsvd.kernels.resources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.tiles import rank_space_tiles


@dataclass(frozen=True)
class RankSpaceCase:
    """One way to compile the rank-space kernel, for inputs packed as one [B, S, q | k | v]."""

    name: str
    dtype: torch.dtype
    score: HeadLayout
    value: HeadLayout
    masked: bool
    kv_group: int = 1
    seq: int = 512
    stride_align: int = 16
    windowed: bool = False
    causal: bool = False

    def kernel(self) -> tuple[Any, dict[str, Any], dict[str, int]]:
        """The kernel, its constants and its launch options."""
        from flashsvd.kernels.rank_space.launch import rank_space_constants
        from flashsvd.kernels.rank_space.triton_kernel import rank_space_kernel

        tiles = rank_space_tiles(self.seq, self.score, self.value, self.dtype)
        constants = rank_space_constants(
            self.seq,
            self.seq,
            self.score,
            self.value,
            self.kv_group,
            self.masked,
            self.windowed,
            self.causal,
            self.stride_align,
            tiles,
        )
        return rank_space_kernel, constants, {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}


def rank_space_cases() -> tuple[RankSpaceCase, ...]:
    """A spread over dtypes, whole, odd and large ranks, masks and groups."""

    def both(*ranks: int) -> tuple[HeadLayout, HeadLayout]:
        return (HeadLayout(ranks),) * 2

    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return (
        RankSpaceCase("bf16 rank space r40", bf16, *both(*(40,) * 12), masked=False),
        RankSpaceCase("bf16 rank space r32 mask", bf16, *both(*(32,) * 12), masked=True),
        RankSpaceCase("bf16 rank space r64 mask groups", bf16, *both(64, 40), masked=True, kv_group=4),
        RankSpaceCase(
            "bf16 rank space window",
            bf16,
            HeadLayout((64, 64)),
            HeadLayout((40, 24)),
            masked=True,
            windowed=True,
        ),
        RankSpaceCase("bf16 rank space causal r40", bf16, *both(*(40,) * 12), masked=True, causal=True),
        RankSpaceCase(
            "bf16 rank space causal window", bf16, *both(64, 64), masked=False, windowed=True, causal=True
        ),
        RankSpaceCase("bf16 rank space r128", bf16, *both(128, 128), masked=False),
        RankSpaceCase("bf16 rank space r200", bf16, *both(200, 40), masked=False),
        RankSpaceCase(
            "fp16 rank space odd ranks and length",
            fp16,
            HeadLayout((7, 59)),
            HeadLayout((16, 1)),
            masked=False,
            seq=1025,
            stride_align=1,
        ),
        RankSpaceCase("fp32 rank space r40 mask", fp32, *both(*(40,) * 12), masked=True),
    )
