"""Tiles: what is on chip, and how full is the GPU?"""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from app import choices, echo
from app.components import markup, sm_panel, tile_panels
from app.components.page import page
from app.evidence import Evidence
from app.state import Settings
from app.tile_subject import layer_kernels
from flashsvd.errors import FlashSVDError
from flashsvd.onchip.calls import KERNELS, KernelCall
from flashsvd.ranks import RankPlan


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
        kernels = layer_kernels(plan, settings, evidence, choices.here())
    except FlashSVDError as error:
        markup.notice(str(error), error=True)
        return
    subject = kernels.subject
    if subject is None:
        markup.empty("No kernel streams this layer", kernels.refusals)
        _layer_picker(plan, kernels.layer)
        return
    with st.container(horizontal=True, vertical_alignment="center", key="tiles_top"):
        st.html('<div class="fs-title">What is on chip, and how full is the GPU?</div>', width="content")
        _kernel_picker(subject.call.kernel, kernels.known)
        _layer_picker(plan, kernels.layer)
    left, right = st.columns([50, 50], gap="small")
    with left, st.container(key="panel_tiles_occupancy", height="stretch"):
        tile_panels.occupancy_panel(subject)
    with right, st.container(key="panel_tiles_program", height="stretch"):
        st.fragment(tile_panels.program_panel)(subject)
    with st.container(key="panel_tiles_stairs"):
        tile_panels.stairs_panel(subject)
    with st.container(key="panel_tiles_sm"):
        sm_panel.sm_panel(subject.call, subject.gpu)
    markup.muted(_not_shown(kernels.calls), "fs-foot")


def _kernel_picker(kernel: str, names: tuple[str, ...]) -> None:
    st.session_state["w_tiles_kernel"] = kernel
    st.pills(
        "Kernel",
        names,
        key="w_tiles_kernel",
        format_func=lambda name: KERNELS[name].title,
        label_visibility="collapsed",
        on_change=echo.heard(
            "w_tiles_kernel",
            lambda: choices.choose("tiles_kernel", st.session_state["w_tiles_kernel"] or kernel, names[0]),
        ),
    )


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


def _not_shown(calls: Mapping[str, KernelCall | str]) -> str:
    missing = [f"{KERNELS[name].title} ({why})" for name, why in calls.items() if isinstance(why, str)]
    return f"Not shown: {'; '.join(missing)}." if missing else ""


page(render)
