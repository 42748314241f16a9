"""When and where every program of one launch ran, as measured: plain data, its file, and those that ship. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flashsvd.errors import InputError
from flashsvd.gpus import gpu
from flashsvd.onchip.calls import KERNELS, KernelCall
from flashsvd.onchip.occupancy import Footprint, Occupancy, occupancy
from flashsvd.paths import assets
from flashsvd.results import Machine, Quantiles, from_json, to_json
from flashsvd.tables import Kind, read_table, write_table

_KIND = Kind("recording of programs on multiprocessors", "flashsvd-sm-trace/1")
_COLUMNS = ("sm", "start_ns", "end_ns")
MOST_PROGRAMS = 1 << 20


@dataclass(frozen=True)
class Build:
    """What a compiled kernel takes, as the driver loaded it: registers and spilled bytes a thread, shared bytes."""

    registers: int
    spill_bytes: int
    shared_bytes: int


@dataclass(frozen=True, eq=False)
class SmTrace:
    """One launch of a kernel that was built with probes (`flashsvd.onchip.probe`), and the time of both builds.

    gpu: its name in `flashsvd.gpus`; machine: where it ran, with versions. tiles, grid, warps: of the launch, which is
    the shipped kernel's. plain_ms and instrumented_ms: kernel times of the shipped build and of the one with probes,
    taken in turn, `repeats` of each. timer_step_ns: what the GPU's timer counts in. error: relative norm of the
    difference of both outputs, 0 where they are equal to the bit. command: repeats it.

    sm, start_ns, end_ns: int64 [programs], in the order of their numbers, the earliest start being 0.
    """

    call: KernelCall
    gpu: str
    machine: Machine
    sm_count: int
    tiles: Mapping[str, Any]
    grid: tuple[int, ...]
    warps: int
    plain: Build
    instrumented: Build
    plain_ms: Quantiles
    instrumented_ms: Quantiles
    repeats: int
    timer_step_ns: int
    error: float
    created: str
    command: str
    sm: NDArray[np.int64] = field(repr=False, metadata={"json": False})
    start_ns: NDArray[np.int64] = field(repr=False, metadata={"json": False})
    end_ns: NDArray[np.int64] = field(repr=False, metadata={"json": False})

    @property
    def programs(self) -> int:
        return len(self.sm)

    @property
    def overhead(self) -> float:
        """What the probes cost, as a share of the plain kernel's median time; below 0 where they were faster."""
        return self.instrumented_ms.p50 / self.plain_ms.p50 - 1

    def predicted(self, build: Build | None = None) -> Occupancy:
        """Programs that share a multiprocessor by the rules of `flashsvd.onchip.occupancy`; of the build that was
        traced unless another is given."""
        one = build or self.instrumented
        return occupancy(Footprint(self.warps, one.registers, one.shared_bytes), gpu(self.gpu).processor)


def checked(trace: SmTrace) -> SmTrace:
    """The trace itself. Raises InputError, in one line, for numbers that no launch can have."""
    try:
        problem = _problem(trace)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        problem = f"a field is of the wrong kind ({error})"
    if problem:
        raise InputError(f"this is no trace of a launch: {problem}; record it again")
    return trace


def _problem(trace: SmTrace) -> str:
    columns = [getattr(trace, name) for name in _COLUMNS]
    programs = math.prod(trace.grid)
    if trace.call.kernel not in KERNELS:
        return f"no kernel is called {trace.call.kernel!r}"
    gpu(trace.gpu)
    if not 1 <= programs <= MOST_PROGRAMS or any(column.shape != (programs,) for column in columns):
        return f"a grid of {trace.grid} with {len(trace.sm)} programs"
    if trace.sm.min() < 0 or trace.sm.max() >= trace.sm_count:
        return f"multiprocessor {int(trace.sm.max())} of {trace.sm_count}"
    if trace.start_ns.min() != 0 or (trace.end_ns < trace.start_ns).any():
        return "a program ends before it starts, or none starts at 0"
    for times in (trace.plain_ms, trace.instrumented_ms):
        if not 0 < times.p20 <= times.p50 <= times.p80 < math.inf:
            return f"times of {times.p20}, {times.p50} and {times.p80} ms"
    if trace.timer_step_ns < 1 or trace.repeats < 1 or not 0 <= trace.error < math.inf:
        return "no timer's step, no repeats or no difference of outputs"
    if trace.predicted().blocks < 1:
        return "the kernel does not fit the GPU"
    return ""


def write_trace(path: Path, trace: SmTrace) -> None:
    """Writes one file, whole or not at all: a row per program, everything else in the header.

    Raises InputError where it cannot be written or is no trace.
    """
    checked(trace)
    table = pa.table({name: pa.array(getattr(trace, name), pa.int64()) for name in _COLUMNS})
    write_table(path, _KIND, {"trace": to_json(trace)}, table)


def read_trace(path: Path) -> SmTrace:
    """Reads `write_trace`.

    Raises:
        InputError: not such a file, truncated, too large, from another version, or with impossible numbers.
    """
    header, table = read_table(path, _KIND)
    try:
        columns = {name: table.column(name).to_numpy().astype(np.int64, casting="safe") for name in _COLUMNS}
        return checked(from_json(SmTrace, header["trace"], **columns))
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path.name} lacks a part of a trace ({error}); record it again") from None


class SmTraces:
    """Traces, found by what was launched."""

    def __init__(self, traces: Iterable[SmTrace] = ()) -> None:
        self._traces = tuple(traces)

    def __len__(self) -> int:
        return len(self._traces)

    def __iter__(self) -> Iterator[SmTrace]:
        return iter(self._traces)

    def find(self, call: KernelCall, gpu_name: str = "") -> SmTrace | None:
        """The trace of just this call, else the nearest of its kernel: of its precision, of its form, of like ranks
        and as many programs' worth of tokens, in that order. Of equals the one on `gpu_name`, then the newest. None
        where the kernel has none."""
        own = sorted(
            (trace for trace in self._traces if trace.call.kernel == call.kernel),
            key=lambda trace: trace.created,
            reverse=True,
        )
        return min(own, key=lambda trace: (*_distance(trace.call, call), trace.gpu != gpu_name), default=None)


def _distance(one: KernelCall, call: KernelCall) -> tuple[float, ...]:
    return (
        one != call,
        one.dtype != call.dtype,
        one.form != call.form,
        sum(abs(getattr(one, name) - getattr(call, name)) for name in ("rank", "rank_out", "rank_up")),
        abs(math.log(one.rows / call.rows)),
        abs(one.width - call.width) + abs(one.hidden - call.hidden),
    )


def difference(one: KernelCall, call: KernelCall) -> str:
    """In what a trace's call is another one than that asked for, in words; empty where it is the same.

    >>> one = KernelCall("ffn", "bf16", 32, 512, 240, 240)
    >>> difference(one, KernelCall("ffn", "bf16", 8, 512, 312, 240))
    'rank 240 for 312, batch 32 for 8'
    """
    names = {
        "dtype": "",
        "rank": "rank ",
        "rank_out": "output rank ",
        "rank_up": "up rank ",
        "batch": "batch ",
        "seq": "tokens ",
        "width": "width ",
        "hidden": "hidden ",
        "heads": "heads ",
        "head_dim": "head dim ",
    }
    found = [
        f"{words}{getattr(one, name)} for {getattr(call, name)}"
        for name, words in names.items()
        if getattr(one, name) != getattr(call, name)
    ]
    return ", ".join(found) or ("" if one == call else "another form of the model")


def folder() -> Path:
    """Where the traces that ship are."""
    return assets() / "recordings" / "sm"


def files(where: Path | None = None) -> list[Path]:
    """The files of traces in a folder, or of those that ship."""
    return sorted((where or folder()).glob("*.parquet"))


def read_all(where: Path | None = None) -> SmTraces:
    """Every trace of a folder, or all that ship. Raises InputError for a file that is none."""
    return SmTraces(map(read_trace, files(where)))
