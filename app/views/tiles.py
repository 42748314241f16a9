"""Tiles: what is on chip, and how full is the GPU?"""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from app import choices, work
from app.components import markup, sm_panel, tile_panels
from app.components.page import page
from app.evidence import Badge, Evidence
from app.state import Settings
from flashsvd.errors import FlashSVDError
from flashsvd.gpus import GPUS, gpu_of_device
from flashsvd.onchip.calls import KERNELS, KernelCall, asked_rank, calls_of
from flashsvd.onchip.compiled import Compiled, Table, shipped
from flashsvd.onchip.request import CompiledCalls, CompileRequest
from flashsvd.ranks import RankPlan

_DEFAULT_GPU = "H200"


def render(settings: Settings, evidence: Evidence) -> None:
    """The kernels of one layer: occupancy everywhere, one program's tiles, the rank as a staircase, and when and where
    programs ran."""
    plan = evidence.plan
    if plan is None:
        markup.empty(
            f"The layers of {settings.model} are not known yet",
            "Run live loads the model; its kernels are then shown here.",
        )
        return
    try:
        table = shipped()
    except FlashSVDError as error:
        markup.notice(str(error), error=True)
        return
    layer = _layer(plan)
    calls = calls_of(plan, layer, settings.batch, settings.seq, settings.dtype)
    known = {name: call for name, call in calls.items() if isinstance(call, KernelCall)}
    if not known:
        markup.empty(
            "No kernel streams this layer",
            f"{KERNELS['ffn'].title}: {calls['ffn']}. {KERNELS['attention'].title}: {calls['attention']}.",
        )
        _layer_picker(plan, layer)
        return
    kernel = choices.chosen("tiles_kernel", tuple(known), next(iter(known)))
    with st.container(horizontal=True, vertical_alignment="center", key="tiles_top"):
        st.html('<div class="fs-title">What is on chip, and how full is the GPU?</div>', width="content")
        _kernel_picker(kernel, tuple(known))
        _layer_picker(plan, layer)
    default = _default_gpu(evidence)
    gpu = choices.chosen("tiles_gpu", tuple(one.name for one in GPUS), default)
    rows = _rows_of_tab()
    subject = tile_panels.Subject(
        known[kernel],
        asked_rank(plan, layer, kernel),
        gpu,
        lambda call, name: _found(table, rows, call, name),
        _badge(table, rows, known[kernel], gpu),
        default,
    )
    left, right = st.columns([50, 50], gap="small")
    with left, st.container(key="panel_tiles_occupancy", height="stretch"):
        tile_panels.occupancy_panel(subject)
    with right, st.container(key="panel_tiles_program", height="stretch"):
        st.fragment(tile_panels.program_panel)(subject)
    with st.container(key="panel_tiles_stairs"):
        tile_panels.stairs_panel(subject)
    with st.container(key="panel_tiles_sm"):
        sm_panel.sm_panel(subject.call, gpu)
    markup.muted(_not_shown(calls), "fs-foot")


def _kernel_picker(kernel: str, names: tuple[str, ...]) -> None:
    st.session_state["w_tiles_kernel"] = kernel
    st.pills(
        "Kernel",
        names,
        key="w_tiles_kernel",
        format_func=lambda name: KERNELS[name].title,
        label_visibility="collapsed",
        on_change=lambda: choices.choose(
            "tiles_kernel", st.session_state["w_tiles_kernel"] or kernel, names[0]
        ),
    )


def _layer(plan: RankPlan) -> int:
    options = tuple(str(number) for number in range(1, len(plan.shape.layers) + 1))
    return int(choices.chosen("tiles_layer", options, "1")) - 1


def _layer_picker(plan: RankPlan, layer: int) -> None:
    """Only where layers differ in rank: else all of them run the same launches."""
    if all(ranks == plan.ranks[0] for ranks in plan.ranks):
        return
    st.session_state["w_tiles_layer"] = layer + 1
    st.selectbox(
        "Layer",
        range(1, len(plan.shape.layers) + 1),
        key="w_tiles_layer",
        format_func=lambda number: f"Layer {number}",
        label_visibility="collapsed",
        width=110,
        on_change=choices.keep,
        args=("tiles_layer", "w_tiles_layer", "1"),
    )


def _default_gpu(evidence: Evidence) -> str:
    """The GPU that the run on screen was measured on, where the list has it."""
    result = evidence.comparison
    name = result.machine.accelerator if result is not None else None
    found = gpu_of_device(name) if name else None
    return found.name if found else _DEFAULT_GPU


def _rows_of_tab() -> Mapping[tuple[KernelCall, str], Compiled]:
    """What this tab compiled, and what is coming."""
    rows: dict[tuple[KernelCall, str], Compiled] = {}
    for request, result in st.session_state.get("results", {}).items():
        if isinstance(request, CompileRequest) and isinstance(result, CompiledCalls):
            rows.update({(row.call, row.gpu): row for row in result.rows})
    job = work.active().get("compile")
    if job is not None:
        rows.update({(row.call, row.gpu): row for row in work.partial(job) if isinstance(row, Compiled)})
    return rows


def _found(
    table: Table, rows: Mapping[tuple[KernelCall, str], Compiled], call: KernelCall, name: str
) -> Compiled | None:
    return rows.get((call, name)) or table.find(call, name)


def _badge(
    table: Table, rows: Mapping[tuple[KernelCall, str], Compiled], call: KernelCall, name: str
) -> Badge:
    mine = rows.get((call, name))
    if mine is not None:
        return Badge("COMPILED", f"here, by Triton {mine.triton}")
    return Badge("COMPILED", f"by Triton {table.manifest.triton} on {table.manifest.date}, no GPU needed")


def _not_shown(calls: Mapping[str, KernelCall | str]) -> str:
    missing = [f"{KERNELS[name].title} ({why})" for name, why in calls.items() if isinstance(why, str)]
    return f"Not shown: {'; '.join(missing)}." if missing else ""


page(render)
