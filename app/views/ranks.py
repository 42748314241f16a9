"""Ranks: which heads and layers can I cut?"""

from __future__ import annotations

import streamlit as st

from app import echo, work
from app.components import (
    budget,
    charts,
    jobs,
    markup,
    plan_files,
    plan_gestures,
    plan_presets,
    plan_sliders,
    plan_typed,
)
from app.components.page import page
from app.evidence import PREDICTED, Evidence
from app.state import Settings
from app.words import cards, count, percent, red_gate, weight_bytes
from flashsvd.allocate import tail_energy
from flashsvd.figures.spectrum import spectrum, table
from flashsvd.ranks import RankPlan


def render(settings: Settings, evidence: Evidence) -> None:
    """Presets, the grid of ranks, sliders, one unit's spectrum, and what the plan keeps."""
    plan_gestures.run_again()
    plan = evidence.plan
    if plan is None:
        markup.empty(
            f"The layers of {settings.model} are not known yet",
            "Run live loads the model and shows its ranks here.",
        )
        return
    parameters = evidence.info.parameters if evidence.info else None
    plan_presets.presets(plan, settings, evidence.sigmas, parameters)
    budget.found()
    grid = st.container(key="panel_grid")
    edit, unit, counts = st.columns([34, 29, 37], gap="small")
    with edit, st.container(key="panel_sliders", height="stretch"):
        title, pick = st.columns([45, 55], vertical_alignment="center", wrap=False)
        with title:
            markup.head("Ranks", "per projection")
        with pick:
            layer = plan_sliders.layer_picker(plan.shape)
        plan_sliders.sliders(plan, layer)
    with unit, st.container(key="panel_spectrum", height="stretch"):
        chosen = _spectrum(plan, settings, evidence)
    with counts, st.container(key="panel_plan", height="stretch"):
        _counts(plan, settings, evidence)
    with grid:
        plan_gestures.grid(plan, settings, evidence.sigmas, parameters, chosen)
    with st.container(key="panel_table"):
        plan_typed.head_table(plan)


def _spectrum(plan: RankPlan, settings: Settings, evidence: Evidence) -> tuple[int, str, int]:
    layer = min(st.session_state.get("ranks_layer", 0), len(plan.shape.layers) - 1)
    names = [slot.name for slot in plan.shape.layers[layer]]
    if st.session_state.get("w_unit_slot", names[0]) not in names:
        st.session_state["w_unit_slot"] = names[0]
    title, first, second = st.columns([38, 30, 32], vertical_alignment="center", wrap=False)
    with first:
        name = st.selectbox("Projection", names, key="w_unit_slot", label_visibility="collapsed")
    slot = plan.shape.slot(layer, name)
    with second:
        heads = range(slot.units)
        if st.session_state.get("w_unit_head", 0) not in heads:
            st.session_state["w_unit_head"] = 0
        head = st.selectbox(
            "Head",
            heads,
            key="w_unit_head",
            format_func=lambda unit: f"h{unit + 1}" if slot.units > 1 else "whole",
            label_visibility="collapsed",
            disabled=slot.units == 1,
        )
    with title:
        markup.head(f"Layer {layer + 1}", "singular values")
    values = evidence.sigmas.get((layer, name))
    if values is not None:
        rank = plan.get(layer, name)[head]
        figure = spectrum(values[head], rank, slot, mode=markup.mode(), height=262)
        charts.chart(figure, key="spectrum", name="Singular values", data=table(values[head], rank))
    elif "spectra" in work.active():
        jobs.panel("spectra")
    else:
        markup.muted("The singular values of this model are not here yet: the worker computes them once.")
        st.button(
            "Compute the spectra",
            key="run_spectra",
            width="stretch",
            on_click=work.start,
            args=(settings.spectra_request(),),
        )
    return layer, name, head


def _counts(plan: RankPlan, settings: Settings, evidence: Evidence) -> None:
    shape, info = plan.shape, evidence.info
    title, again = st.columns([52, 48], vertical_alignment="center", wrap=False)
    with title:
        markup.head("This plan", f"counted · {plan.dense_units} of {plan.units} units dense", PREDICTED)
    with again:
        _run_on_release()
    cells = [
        (
            "Factored weights",
            percent(plan.keep),
            f"{count(plan.kept_parameters)} of {count(shape.dense_parameters)}",
        )
    ]
    if info is not None:
        kept = info.parameters - shape.dense_parameters + plan.kept_parameters
        cells.append(("Whole model", count(kept), f"of {count(info.parameters)} parameters"))
        cells.append(
            (
                f"Weights in {settings.dtype}",
                weight_bytes(kept, settings.dtype),
                f"dense {weight_bytes(info.parameters, settings.dtype)}",
            )
        )
    else:
        cells.append(
            (
                f"Factored, {settings.dtype}",
                weight_bytes(plan.kept_parameters, settings.dtype),
                f"dense {weight_bytes(shape.dense_parameters, settings.dtype)}",
            )
        )
    if evidence.sigmas:
        cells.append(("Tail energy", percent(tail_energy(plan, evidence.sigmas)), "of σ² is cut off"))
    markup.numbers(cells)
    plan_typed.mirror(plan)
    run, file = st.columns([55, 45], gap="small", wrap=False)
    with run:
        st.button(
            "Run this plan",
            key="run_plan",
            type="primary",
            width="stretch",
            disabled="compare" in work.active(),
            on_click=work.start_compare,
        )
    with file:
        plan_files.plan_file(plan, settings.model)
    _measured(evidence)


def _run_on_release() -> None:
    st.session_state["w_ranks_run"] = plan_gestures.runs_on_release()
    st.toggle(
        "Run on release",
        key="w_ranks_run",
        help="Starts the measured run as soon as a drag in the grid ends. On a CPU that takes seconds.",
        on_change=echo.heard(
            "w_ranks_run", lambda: plan_gestures.run_on_release(st.session_state["w_ranks_run"])
        ),
    )


def _measured(evidence: Evidence) -> None:
    result = evidence.comparison
    if result is None or not evidence.current:
        markup.muted("Not run yet with these settings.", "fs-foot")
        return
    peak, latency, score, _ = cards(result, scoring=evidence.scoring)
    wrong = red_gate(result)
    if wrong:
        markup.notice(wrong, error=True)
    name = score.label.partition(",")[0].lower()
    markup.measured(
        [(peak.value, peak.note), (latency.value, latency.note), (f"{name} {score.value}", score.note)],
        evidence.comparison_badge,
    )


page(render)
