"""Ways to compile the kernel that rebuilds and turns heads for a GPU that need not be there; see
`flashsvd.kernels.resources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.kernels.rebuild.tiles import rebuild_tiles


@dataclass(frozen=True)
class RebuildCase:
    """One way to compile it, for one run; `align` divides p's row stride, the rank and its first column."""

    name: str
    dtype: torch.dtype
    rank: int
    head_dim: int = 64
    count: int = 24
    biased: bool = True
    align: int = 16

    @property
    def aligned_numbers(self) -> frozenset[str]:
        """Strides of contiguous cosines and sines, where 16 divides them."""
        strides = {f"{name}_{stride}" for name in ("cos", "sin") for stride in ("batch_stride", "stride")}
        return frozenset() if self.head_dim % 16 else frozenset(strides)

    def kernel(self) -> tuple[Any, dict[str, Any], dict[str, int]]:
        """The kernel, its constants and its launch options."""
        from flashsvd.kernels.rebuild.launch import rebuild_constants
        from flashsvd.kernels.rebuild.triton_kernel import rebuild_kernel

        tiles = rebuild_tiles(self.count, self.rank, self.head_dim, self.dtype)
        constants = rebuild_constants(self.head_dim, self.align, self.biased, tiles)
        return rebuild_kernel, constants, {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}


def rebuild_cases() -> tuple[RebuildCase, ...]:
    """A spread over dtypes, ranks, head dims and alignments."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return (
        RebuildCase("bf16 rebuild r32 h64", bf16, 32, biased=False),
        RebuildCase("bf16 rebuild r40 h64", bf16, 40, align=8),
        RebuildCase("bf16 rebuild r64 h64", bf16, 64),
        RebuildCase("fp16 rebuild r8 h32", fp16, 8, head_dim=32, count=1, align=8),
        RebuildCase("bf16 rebuild r16 h64", bf16, 16),
        RebuildCase("bf16 rebuild r16 h128", bf16, 16, head_dim=128),
        RebuildCase("bf16 rebuild r16 h256", bf16, 16, head_dim=256),
        RebuildCase("fp16 rebuild r72 h96", fp16, 72, head_dim=96, count=7, align=8),
        RebuildCase("bf16 rebuild r128 h64", bf16, 128),
        RebuildCase("fp16 rebuild r128 h32", fp16, 128, head_dim=32),
        RebuildCase("bf16 rebuild r128 h128", bf16, 128, head_dim=128),
        RebuildCase("bf16 rebuild r104 h256", bf16, 104, head_dim=256, align=8),
        RebuildCase("fp32 rebuild r32 h64", fp32, 32),
        RebuildCase("fp32 rebuild r59 h80", fp32, 59, head_dim=80, count=3, align=1),
        RebuildCase("fp32 rebuild r128 h64", fp32, 128),
        RebuildCase("fp32 rebuild r64 h256", fp32, 64, head_dim=256),
    )
