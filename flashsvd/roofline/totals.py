"""Ceilings of a machine, and operations summed under one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from flashsvd.roofline.op import Op

Bound = Literal["memory", "compute"]


@dataclass(frozen=True)
class Ceiling:
    """What a machine can do at most: a rate in FLOP/s and one in bytes/s, and where they come from."""

    name: str
    flops_s: float
    bytes_s: float
    source: Literal["DATA SHEET", "MEASURED"]
    detail: str = ""

    @property
    def ridge(self) -> float:
        """FLOP per byte at which the two limits meet."""
        return self.flops_s / self.bytes_s

    def attainable(self, intensity: float) -> float:
        """FLOP/s at most at an arithmetic intensity."""
        return min(self.flops_s, intensity * self.bytes_s)

    def seconds(self, flops: int, count: int) -> float:
        """The least time that takes: the longer of computing and moving."""
        return max(flops / self.flops_s, count / self.bytes_s)


@dataclass(frozen=True)
class Total:
    """The same operation of all layers, or a whole model. seconds: summed over its products, each at its own limit."""

    name: str
    covers: tuple[str, ...]
    layers: int
    flops: int
    bytes: int
    seconds: float
    memory_seconds: float

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes

    @property
    def bound(self) -> Bound:
        """What takes most of its least time."""
        return "memory" if self.memory_seconds > self.seconds / 2 else "compute"

    @property
    def memory_share(self) -> float:
        """Share of the least time that goes to products bound by memory."""
        return self.memory_seconds / self.seconds if self.seconds else 0.0


def totals(ops: Iterable[Op], ceiling: Ceiling) -> list[Total]:
    """Operations of one name over all layers, in the order of a layer."""
    named: dict[str, list[Op]] = {}
    for op in ops:
        named.setdefault(op.name, []).append(op)
    return [_total(name, members[0].covers, members, ceiling) for name, members in named.items()]


def whole(ops: Sequence[Op], ceiling: Ceiling) -> Total:
    """All operations of a model one after another."""
    return _total("whole model", (), ops, ceiling)


def _total(name: str, covers: tuple[str, ...], ops: Sequence[Op], ceiling: Ceiling) -> Total:
    seconds = [ceiling.seconds(op.flops, op.bytes) for op in ops]
    by_memory = [
        time
        for op, time in zip(ops, seconds, strict=True)
        if op.bytes / ceiling.bytes_s > op.flops / ceiling.flops_s
    ]
    return Total(
        name=name,
        covers=covers,
        layers=len({op.layer for op in ops}),
        flops=sum(op.flops for op in ops),
        bytes=sum(op.bytes for op in ops),
        seconds=sum(seconds),
        memory_seconds=sum(by_memory),
    )
