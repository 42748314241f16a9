"""Tiles of the Triton rotary kernel."""

from __future__ import annotations

from dataclasses import dataclass

from flashsvd.kernels.tiles import next_power_of_two

_PAIRS = 2048
"""Pairs of columns per program of 4 warps: 16 for a thread, two loads of 16 bytes from each half in half types."""


@dataclass(frozen=True)
class RotaryTiles:
    """Tokens, heads of q and of k, and pairs of a head that one program turns."""

    block_m: int
    q_group: int
    k_group: int
    block_h: int
    num_warps: int = 4


def rotary_tiles(seq: int, heads: int, kv_heads: int, head_dim: int) -> RotaryTiles:
    """A few heads per program share its cosines; groups divide the heads, so that only tokens need a mask.

    >>> rotary_tiles(512, 12, 12, 64)
    RotaryTiles(block_m=16, q_group=4, k_group=4, block_h=32, num_warps=4)
    """
    groups = [min(8, count & -count) for count in (heads, kv_heads)]
    block_h = next_power_of_two(head_dim // 2, 1)
    block_m = max(1, _PAIRS // (max(groups) * block_h))
    return RotaryTiles(min(block_m, next_power_of_two(seq, 1)), groups[0], groups[1], block_h)
