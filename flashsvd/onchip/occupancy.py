"""How many programs of a kernel share a multiprocessor, and what keeps others out.

Source: the rules of the CUDA Occupancy Calculator. Registers are given to each warp in whole units, and warps to the
four schedulers alike; shared memory to each block in whole units, with what the system keeps of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flashsvd.errors import InputError
from flashsvd.gpus import WARP_THREADS, Gpu, Multiprocessor

_NO_LIMIT = 1 << 30

Limiter = Literal["registers", "shared memory", "tensor memory", "warps", "blocks"]


@dataclass(frozen=True)
class Footprint:
    """What one program takes: warps, registers per thread, shared bytes, columns of tensor memory."""

    warps: int
    registers: int
    shared_bytes: int
    tensor_columns: int = 0


@dataclass(frozen=True)
class Occupancy:
    """Programs and warps on one multiprocessor at once, of at most `max_warps`; 0 where not even one fits."""

    blocks: int
    warps: int
    max_warps: int
    limiter: Limiter

    @property
    def share(self) -> float:
        """Of all warps that it could hold."""
        return self.warps / self.max_warps


@dataclass(frozen=True)
class Waves:
    """How often all multiprocessors are filled by a grid. `last_share` is how full the last filling is, above 0."""

    waves: float
    last_share: float


def occupancy(footprint: Footprint, processor: Multiprocessor) -> Occupancy:
    """Programs that share one multiprocessor. Raises InputError for no warp or a negative amount.

    Of equal limits the first of registers, shared memory, tensor memory, warps, blocks is named.

    >>> from flashsvd.gpus import gpu
    >>> occupancy(Footprint(warps=4, registers=255, shared_bytes=49152), gpu("H200").processor)
    Occupancy(blocks=2, warps=8, max_warps=64, limiter='registers')
    """
    if footprint.warps < 1 or min(footprint.registers, footprint.shared_bytes, footprint.tensor_columns) < 0:
        raise InputError(f"a program has at least 1 warp and no negative amounts, got {footprint}")
    limits: dict[Limiter, int] = {
        "registers": _by_registers(footprint, processor),
        "shared memory": _by_shared(footprint.shared_bytes, processor),
        "tensor memory": _by_tensor_memory(footprint.tensor_columns, processor),
        "warps": processor.max_warps // footprint.warps,
        "blocks": processor.max_blocks,
    }
    limiter = min(limits, key=lambda name: limits[name])
    blocks = limits[limiter]
    return Occupancy(blocks, blocks * footprint.warps, processor.max_warps, limiter)


def waves(programs: int, blocks_per_processor: int, gpu: Gpu) -> Waves:
    """A grid of `programs` over a whole GPU. Raises InputError for counts below 1.

    >>> from flashsvd.gpus import gpu
    >>> waves(300, 1, gpu("H200"))
    Waves(waves=2.272727272727273, last_share=0.2727272727272727)
    """
    if programs < 1 or blocks_per_processor < 1:
        raise InputError(
            f"expected at least 1 program and 1 per processor, got {programs} and {blocks_per_processor}"
        )
    places = blocks_per_processor * gpu.sm_count
    return Waves(programs / places, ((programs - 1) % places + 1) / places)


def _by_registers(footprint: Footprint, processor: Multiprocessor) -> int:
    if footprint.registers == 0:
        return _NO_LIMIT
    if footprint.registers > processor.max_registers_thread:
        return 0
    a_warp = _rounded(footprint.registers * WARP_THREADS, processor.register_unit)
    fit = processor.registers // a_warp // processor.warp_unit * processor.warp_unit
    return fit // footprint.warps


def _by_shared(shared_bytes: int, processor: Multiprocessor) -> int:
    if shared_bytes > processor.shared_block_bytes:
        return 0
    block = _rounded(shared_bytes + processor.shared_reserved_bytes, processor.shared_unit_bytes)
    return _NO_LIMIT if block == 0 else processor.shared_bytes // block


def _by_tensor_memory(columns: int, processor: Multiprocessor) -> int:
    if columns == 0:
        return _NO_LIMIT
    # Taken in powers of two, at least 32.
    taken = max(32, 1 << (columns - 1).bit_length())
    return processor.tensor_columns // taken


def _rounded(amount: int, unit: int) -> int:
    return math.ceil(amount / unit) * unit
