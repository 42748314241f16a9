"""One kernel on every GPU: how full each is, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from flashsvd.gpus import GPUS, gpu
from flashsvd.onchip.calls import KernelCall
from flashsvd.onchip.compiled import Compiled
from flashsvd.onchip.programs import programs


@dataclass(frozen=True)
class Fullness:
    """One GPU. `warps` of `max_warps` share a multiprocessor, `limiter` keeps others out; `waves` fill it with the
    grid, the last one `last_share` of it. A `refusal` says why there are no numbers."""

    gpu: str
    warps: int
    max_warps: int
    blocks: int
    limiter: str
    registers: int
    shared_bytes: int
    shared_limit_bytes: int
    spill_bytes: int
    programs: int
    waves: float
    last_share: float
    refusal: str = ""


def fullness(call: KernelCall, find: Callable[[KernelCall, str], Compiled | None]) -> tuple[Fullness, ...]:
    """Every GPU of the table, in its order."""
    return tuple(_one(call, one.name, find(call, one.name)) for one in GPUS)


def _one(call: KernelCall, name: str, row: Compiled | None) -> Fullness:
    processor = gpu(name).processor
    nothing = (0, processor.max_warps, 0, "", 0, 0, processor.shared_block_bytes, 0, 0, 0.0, 0.0)
    if row is None:
        return Fullness(name, *nothing, refusal="not compiled yet for these sizes")
    found = row.occupancy
    if found is None:
        return Fullness(name, *nothing, refusal=row.refusal)
    count = programs(row, call)
    filled = row.waves(count)
    return Fullness(
        name,
        found.warps,
        found.max_warps,
        found.blocks,
        found.limiter,
        row.registers,
        row.shared_bytes,
        processor.shared_block_bytes,
        row.spill_bytes,
        count,
        filled.waves if filled else 0.0,
        filled.last_share if filled else 0.0,
        "" if found.blocks else f"does not fit: too much {found.limiter} for one program",
    )


def frame(rows: tuple[Fullness, ...]) -> pd.DataFrame:
    """The same as a table, for saving."""
    return pd.DataFrame([vars(row) for row in rows])
