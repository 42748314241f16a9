"""What the Tiles page and its slide are about: the kernels of one layer, and the one that was chosen on one GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import streamlit as st

from app import work
from app.choices import Choices
from app.evidence import Badge, Evidence
from app.state import Settings
from flashsvd.gpus import GPUS, gpu_of_device
from flashsvd.onchip.calls import KERNELS, KernelCall, asked_rank, calls_of
from flashsvd.onchip.compiled import Compiled, Table, shipped
from flashsvd.onchip.request import CompiledCalls, CompileRequest
from flashsvd.ranks import RankPlan

Find = Callable[[KernelCall, str], Compiled | None]

_DEFAULT_GPU = "H200"


@dataclass(frozen=True)
class Subject:
    """A call, the rank that the plan asks for, a GPU, and where compiled rows come from."""

    call: KernelCall
    rank: int
    gpu: str
    find: Find
    badge: Badge
    default_gpu: str = _DEFAULT_GPU

    @property
    def row(self) -> Compiled | None:
        return self.find(self.call, self.gpu)


@dataclass(frozen=True)
class LayerKernels:
    """layer: counted from 0. calls: of every kernel, or why it has none. subject: of the chosen one; None where no
    kernel streams the layer."""

    layer: int
    calls: Mapping[str, KernelCall | str]
    subject: Subject | None

    @property
    def known(self) -> tuple[str, ...]:
        """Kernels that run."""
        return tuple(name for name, call in self.calls.items() if isinstance(call, KernelCall))

    @property
    def refusals(self) -> str:
        """Why the kernels of the feed-forward and of attention have no call."""
        return f"{KERNELS['ffn'].title}: {self.calls['ffn']}. {KERNELS['attention'].title}: {self.calls['attention']}."


def layer_kernels(plan: RankPlan, settings: Settings, evidence: Evidence, said: Choices) -> LayerKernels:
    """said: which layer, kernel and GPU were chosen.

    Raises:
        FlashSVDError: the table of compiled kernels that ships cannot be read.
    """
    table, mine = shipped(), _of_tab()
    numbers = tuple(str(number) for number in range(1, len(plan.shape.layers) + 1))
    layer = int(said.chosen("tiles_layer", numbers, "1")) - 1
    calls = calls_of(plan, layer, settings.batch, settings.seq, settings.dtype)
    known = {name: call for name, call in calls.items() if isinstance(call, KernelCall)}
    if not known:
        return LayerKernels(layer, calls, None)
    kernel = said.chosen("tiles_kernel", tuple(known), next(iter(known)))
    default = _default_gpu(evidence)
    gpu = said.chosen("tiles_gpu", tuple(one.name for one in GPUS), default)

    def find(call: KernelCall, name: str) -> Compiled | None:
        return mine.get((call, name)) or table.find(call, name)

    badge = _badge(table, mine.get((known[kernel], gpu)))
    rank = asked_rank(plan, layer, kernel)
    return LayerKernels(layer, calls, Subject(known[kernel], rank, gpu, find, badge, default))


def _badge(table: Table, mine: Compiled | None) -> Badge:
    if mine is not None:
        return Badge("COMPILED", f"here, by Triton {mine.triton}")
    return Badge("COMPILED", f"by Triton {table.manifest.triton} on {table.manifest.date}, no GPU needed")


def _default_gpu(evidence: Evidence) -> str:
    """The GPU that the run on screen was measured on, where the list has it."""
    result = evidence.comparison
    name = result.machine.accelerator if result is not None else None
    found = gpu_of_device(name) if name else None
    return found.name if found else _DEFAULT_GPU


def _of_tab() -> Mapping[tuple[KernelCall, str], Compiled]:
    """What this tab compiled, and what is coming."""
    rows: dict[tuple[KernelCall, str], Compiled] = {}
    for request, result in st.session_state.get("results", {}).items():
        if isinstance(request, CompileRequest) and isinstance(result, CompiledCalls):
            rows.update({(row.call, row.gpu): row for row in result.rows})
    job = work.active().get("compile")
    if job is not None:
        rows.update({(row.call, row.gpu): row for row in work.partial(job) if isinstance(row, Compiled)})
    return rows
