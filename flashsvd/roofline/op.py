"""One operation, and what a forward is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

QKV, ATTENTION, OUTPUT, UP, DOWN, FEED_FORWARD, HEAD = (
    "q, k, v",
    "attention",
    "output",
    "up",
    "down",
    "feed-forward",
    "head",
)


@dataclass(frozen=True)
class Op:
    """One product, or products that share an input, or attention. layer: counted from 0, -1 for the head.

    covers: the dense operations that it stands for; several where a kernel fuses them.
    """

    layer: int
    name: str
    flops: int
    weight_bytes: int
    activation_bytes: int
    covers: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True)
class Setting:
    """What a forward is over. seq: tokens of each sequence, or those behind the one token of a step.

    causal: attention scores no later key. absorbing: the flash engine attends in rank space where q, k, v are factored
    per head. window: of a layer, how far a query sees, None for all. vocabulary: of the head that gives the next
    token's logits; None where it is not counted.
    """

    batch: int
    seq: int
    itemsize: int
    causal: bool = False
    absorbing: bool = False
    window: Callable[[int], int | None] | None = None
    vocabulary: int | None = None
