"""Ways to compile the attention kernel for a GPU that need not be there; see `flashsvd.kernels.resources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.kernels.attention.tiles import Layouts, kernel_tiles
from flashsvd.kernels.layout import HeadLayout


@dataclass(frozen=True)
class AttentionCase:
    """One way to compile the attention kernel; `layouts` of q, k and v, None where dense; as many keys as queries."""

    name: str
    dtype: torch.dtype
    head_dim: int
    layouts: Layouts
    masked: bool
    biased: bool = True
    group: int = 1
    seq: int = 512
    stride_align: int = 16
    causal: bool = False
    windowed: bool = False
    rotary: bool = False

    @property
    def aligned_numbers(self) -> frozenset[str]:
        """Strides of contiguous cosines and sines, where 16 divides them."""
        strides = {f"{name}_stride_{letter}" for name in ("cos", "sin") for letter in "bs"}
        return frozenset() if self.rotary and self.head_dim % 16 else frozenset(strides)

    def kernel(self) -> tuple[Any, dict[str, Any], dict[str, int]]:
        """The kernel, its constants and its launch options."""
        from flashsvd.kernels.attention.launch import attention_constants
        from flashsvd.kernels.attention.triton_kernel import attention_kernel

        wide_loads = self.stride_align * self.dtype.itemsize % 16 == 0
        tiles = kernel_tiles(
            self.seq,
            self.head_dim,
            self.layouts,
            self.dtype,
            wide_loads=wide_loads,
            keys=self.seq,
            group=self.group,
            rotary=self.rotary,
        )
        constants = attention_constants(
            self.seq,
            self.layouts,
            (self.biased,) * 3,
            self.group,
            self.head_dim,
            self.masked,
            self.stride_align,
            tiles,
            self.dtype,
            keys=self.seq,
            causal=self.causal,
            windowed=self.windowed,
            rotary=self.rotary,
        )
        return attention_kernel, constants, {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}


def attention_cases() -> tuple[AttentionCase, ...]:
    """A spread over dtypes, dense and low rank, odd ranks, masks and rank loops, and decoders' forms."""

    def all_three(ranks: tuple[int, ...]) -> tuple[HeadLayout, HeadLayout, HeadLayout]:
        return (HeadLayout(ranks),) * 3

    shared = HeadLayout((384,) * 12, shared=True)
    odd = all_three((7, 59))
    return (
        AttentionCase("bf16 r40 h64 mask", torch.bfloat16, 64, all_three((40,) * 12), masked=True),
        AttentionCase("bf16 r32 h64", torch.bfloat16, 64, all_three((32,) * 12), masked=False),
        AttentionCase("fp16 odd ranks h80", torch.float16, 80, odd, masked=False, seq=1025, stride_align=2),
        AttentionCase("bf16 dense h128 mask", torch.bfloat16, 128, (None,) * 3, masked=True, biased=False),
        AttentionCase("fp16 r64 h128", torch.float16, 128, all_three((64, 64)), masked=False),
        AttentionCase("bf16 shared r384 h64 mask", torch.bfloat16, 64, (shared,) * 3, masked=True),
        AttentionCase("fp32 r40 h64 mask", torch.float32, 64, all_three((40,) * 12), masked=True),
        AttentionCase("fp32 odd ranks h128", torch.float32, 128, odd, masked=False, stride_align=2),
        *_causal_cases(),
    )


def _causal_cases() -> tuple[AttentionCase, ...]:
    """What decoders prefill with: OPT, Llama 3, Qwen 2.5, Mistral with dense keys, Llama 2 by whole matrices."""
    bf16, fp32 = torch.bfloat16, torch.float32
    turned: dict[str, Any] = {"causal": True, "rotary": True}

    def ranks(rank: int, group: int) -> Layouts:
        return (HeadLayout((rank,) * 2 * group), HeadLayout((rank,) * 2), HeadLayout((rank,) * 2))

    dense: Layouts = (None, None, None)
    whole: Layouts = (HeadLayout((1024,) * 32, shared=True),) * 3
    return (
        AttentionCase("bf16 causal r40 h64", bf16, 64, ranks(40, 1), masked=True, causal=True),
        AttentionCase(
            "bf16 turned r64 h128 groups", bf16, 128, ranks(64, 4), False, biased=False, group=4, **turned
        ),
        AttentionCase("bf16 turned r32 h64 groups", bf16, 64, ranks(32, 7), True, group=7, **turned),
        AttentionCase("bf16 turned window h128", bf16, 128, dense, False, group=4, windowed=True, **turned),
        AttentionCase("bf16 turned shared r1024 h128", bf16, 128, whole, False, biased=False, **turned),
        AttentionCase("fp32 turned r32 h64 groups", fp32, 64, ranks(32, 8), True, group=8, **turned),
    )
