"""Roofline: what is the limit?"""

from __future__ import annotations

import streamlit as st

from app import choices, roofline_words, roofs, services, session, work
from app.components import charts, jobs, markup
from app.components.page import page
from app.components.segmented import segmented
from app.evidence import Badge, Evidence
from app.roofs import Roof
from app.state import Settings
from app.words import when
from flashsvd.errors import FlashSVDError
from flashsvd.figures.least_times import least_times
from flashsvd.jobs.kinds.ceilings import CeilingsRequest
from flashsvd.roofline_measured import Bench, Measured

_HEIGHT, _BARS = 418, 300


def render(settings: Settings, evidence: Evidence) -> None:
    """The sentence, the roof with every operation under it, and the least time of each."""
    plan = evidence.plan
    if plan is None:
        markup.empty(
            f"The layers of {settings.model} are not known yet",
            "Run live loads the model; its operations are counted from then on.",
        )
        return
    try:
        bench = services.bench()
    except FlashSVDError as error:
        markup.notice(str(error), error=True)
        bench = Bench((), {})
    found = roofs.roof(settings, plan, choices.here(), bench)
    mode = markup.mode()
    markup.sentence(found.sentence(settings), Badge("PREDICTED", "counted"))
    left, right = st.columns([64, 36], gap="small")
    with left, st.container(key="panel_roof", height="stretch"):
        _head(found)
        figure = roofs.picture(found, mode, _HEIGHT)
        charts.chart(figure, key="roofline", name="Roofline", data=found.table())
        _measured_line(settings, bench, found)
    with right, st.container(key="panel_least", height="stretch"):
        markup.head(
            "The least time of each operation",
            "",
            Badge("PREDICTED"),
            roofline_words.key(found.engine, mode),
        )
        figure = least_times(found.dense, found.compressed, found.engine, mode=mode, height=_BARS)
        charts.chart(figure, key="least", name="Least time of each operation", data=found.table())
        markup.numbers(roofline_words.numbers(found.whole_dense, found.whole, found.engine))
        _measure(settings)


def _head(found: Roof) -> None:
    title, pick = st.columns([60, 40], vertical_alignment="top", wrap=False)
    with title:
        markup.head(
            "Every operation under the roof",
            "larger: more of the least time · " + roofline_words.source(found.ceiling),
            Badge("PREDICTED"),
        )
    with pick:
        st.session_state["w_roofline_gpu"] = found.name
        st.selectbox(
            "Ceilings of",
            list(found.known),
            key="w_roofline_gpu",
            label_visibility="collapsed",
            on_change=choices.keep,
            args=("roofline_gpu", "w_roofline_gpu", roofs.default(found.known)),
        )
    with st.container(horizontal=True, horizontal_alignment="distribute", key="roofline_axes"):
        if found.mode == "prefill":
            segmented(
                "roofline_engine", roofs.ENGINES, roofline_words.ENGINES, "How the compressed model runs"
            )
        else:
            markup.muted(
                "compressed: flash and low-rank count alike, both keep dense keys and values", "fs-sub"
            )
        if found.causal:
            segmented("roofline_mode", roofs.MODES, roofline_words.MODES, "Prompt or token")


def _measure(settings: Settings) -> None:
    """This machine's own roof, on request."""
    if "ceilings" in work.active():
        jobs.panel("ceilings")
        return
    st.button(
        "Measure this machine's ceilings",
        key="run_ceilings",
        width="stretch",
        help="A large matrix product and a copy, a few seconds on the worker.",
        on_click=_start_measuring,
        args=(CeilingsRequest(settings.dtype),),
    )


def _start_measuring(request: CeilingsRequest) -> None:
    choices.choose("roofline_gpu", "")
    work.start(request)


def _measured_line(settings: Settings, bench: Bench, found: Roof) -> None:
    """Says what the stars are, or offers the shapes that were measured."""
    recorded = bench.of_model(settings.model)
    if not recorded:
        markup.muted(
            "Points stand at the most that each operation can reach. No whole-model measurement of this model ships; "
            "bert-base and llama-2-7b have some.",
            "fs-foot",
        )
        return
    line = "Whole models were measured at other settings:"
    if found.stars:
        point = next(point for point in found.here if point.machine == found.ceiling.name)
        line = f"★ whole model, measured · REPLAY · {point.machine} · {when(point.created)}"
    shapes = {roofline_words.shape(point): point for point in recorded if not point.dense}
    words, pick = st.columns([50, 50], vertical_alignment="center")
    with words:
        markup.muted(line, "fs-foot")
    with pick:
        st.session_state["w_roofline_shape"] = None
        st.selectbox(
            "Measured settings",
            list(shapes),
            key="w_roofline_shape",
            placeholder=f"{len(shapes)} measured settings",
            label_visibility="collapsed",
            on_change=_load_shape,
            args=(shapes,),
        )


def _load_shape(shapes: dict[str, Measured]) -> None:
    """Makes a measured point's batch, tokens, precision and ranks those of the controls."""
    point = shapes.get(st.session_state.get("w_roofline_shape") or "")
    if point is None:
        return
    shape = services.described(point.model)
    if shape is None:
        return
    choices.choose("roofline_mode", point.mode, "prefill")
    choices.choose("roofline_gpu", "")
    keep = point.settings.get("keep")
    plan = None if keep is not None else point.plan(shape).to_text()
    session.update(
        batch=point.batch,
        seq=point.seq,
        dtype=point.dtype,
        per_head=bool(point.settings.get("per_head", True)),
        plan=plan,
        **({} if keep is None else {"keep": float(keep)}),
    )


page(render)
