"""Roofline: what is the limit?"""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import streamlit as st

from app import choices, roofline_words, services, session, work
from app.components import charts, jobs, markup
from app.components.page import page
from app.components.segmented import segmented
from app.evidence import Badge, Evidence
from app.state import Settings
from app.words import when
from flashsvd.errors import FlashSVDError
from flashsvd.figures.roofline import Star, least_times, roofline
from flashsvd.jobs.kinds.ceilings import CeilingsRequest, MachineCeiling
from flashsvd.models.family import families
from flashsvd.ranks import RankPlan, bytes_of
from flashsvd.roofline import (
    Ceiling,
    Engine,
    Op,
    Setting,
    Total,
    forward_ops,
    step_ops,
    totals,
    whole,
)
from flashsvd.roofline_measured import Bench, Measured, Mode, data_sheets, matches

_HEIGHT, _BARS = 418, 300
_ENGINES = ("flash", "lowrank")
_MODES = ("prefill", "decode")


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
    family = families().get(plan.shape.family)
    causal = family is not None and family.task == "language"
    mode: Mode = (
        "decode" if causal and choices.chosen("roofline_mode", _MODES, "prefill") == "decode" else "prefill"
    )
    engine: Engine = (
        "lowrank" if choices.chosen("roofline_engine", _ENGINES, "flash") == "lowrank" else "flash"
    )
    known = _ceilings(settings, bench)
    name = choices.chosen("roofline_gpu", list(known), _default(known))
    ceiling = known[name]
    dense_ops, ops = _counted(settings, plan, mode, engine)
    dense, compressed = totals(dense_ops, ceiling), totals(ops, ceiling)
    all_dense, all_ops = whole(dense_ops, ceiling), whole(ops, ceiling)
    markup.sentence(
        roofline_words.sentence(settings, mode, engine, all_dense, all_ops, ceiling),
        Badge("PREDICTED", "counted"),
    )
    stars = _stars(settings, plan, bench, mode, name, ceiling)
    left, right = st.columns([64, 36], gap="small")
    with left, st.container(key="panel_roof", height="stretch"):
        _head(ceiling, engine, mode, known, name, causal=causal)
        charts.chart(
            roofline(ceiling, dense, compressed, engine, measured=stars, mode=markup.mode(), height=_HEIGHT),
            key="roofline",
            name="Roofline",
            data=_table(dense, compressed, engine),
        )
        _measured_line(settings, plan, bench, mode, stars)
    with right, st.container(key="panel_least", height="stretch"):
        markup.head(
            "The least time of each operation",
            "",
            Badge("PREDICTED"),
            roofline_words.key(engine, markup.mode()),
        )
        charts.chart(
            least_times(dense, compressed, engine, mode=markup.mode(), height=_BARS),
            key="least",
            name="Least time of each operation",
            data=_table(dense, compressed, engine),
        )
        markup.numbers(roofline_words.numbers(all_dense, all_ops, engine))
        _measure(settings)


def _head(
    ceiling: Ceiling, engine: Engine, mode: Mode, known: dict[str, Ceiling], name: str, *, causal: bool
) -> None:
    title, pick = st.columns([60, 40], vertical_alignment="top", wrap=False)
    with title:
        markup.head(
            "Every operation under the roof",
            "larger: more of the least time · " + roofline_words.source(ceiling),
            Badge("PREDICTED"),
        )
    with pick:
        st.session_state["w_roofline_gpu"] = name
        st.selectbox(
            "Ceilings of",
            list(known),
            key="w_roofline_gpu",
            label_visibility="collapsed",
            on_change=choices.keep,
            args=("roofline_gpu", "w_roofline_gpu", _default(known)),
        )
    with st.container(horizontal=True, horizontal_alignment="distribute", key="roofline_axes"):
        if mode == "prefill":
            segmented("roofline_engine", _ENGINES, roofline_words.ENGINES, "How the compressed model runs")
        else:
            markup.muted(
                "compressed: flash and low-rank count alike, both keep dense keys and values", "fs-sub"
            )
        if causal:
            segmented("roofline_mode", _MODES, roofline_words.MODES, "Prompt or token")


# Ceilings


def _ceilings(settings: Settings, bench: Bench) -> dict[str, Ceiling]:
    """By what the menu says: measured machines first, then every data sheet that has the precision."""
    found: dict[str, Ceiling] = {}
    live = session.result_of(CeilingsRequest(settings.dtype))
    if isinstance(live, MachineCeiling):
        label = live.machine.label
        found[f"{label}, measured here"] = Ceiling(
            label, live.flops_s, live.bytes_s, "MEASURED", live.created
        )
    for (machine, dtype), ceiling in bench.ceilings.items():
        if dtype == settings.dtype:
            found[f"{machine}, measured"] = ceiling
    found |= {f"{one.name}, data sheet": one for one in data_sheets(settings.dtype)}
    return found


def _default(known: dict[str, Ceiling]) -> str:
    return next(iter(known))


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


# Counts


def _counted(settings: Settings, plan: RankPlan, mode: Mode, engine: Engine) -> tuple[list[Op], list[Op]]:
    return _operations(
        settings.model, plan, mode, engine, settings.batch, settings.seq, bytes_of(1, settings.dtype)
    )


@st.cache_data(max_entries=32, show_spinner=False, hash_funcs={RankPlan: hash})
def _operations(
    model: str, plan: RankPlan, mode: Mode, engine: Engine, batch: int, seq: int, itemsize: int
) -> tuple[list[Op], list[Op]]:
    """Operations of the dense model and of the compressed one."""
    family = families().get(plan.shape.family)
    config = SimpleNamespace(**services.configuration(model))
    causal = family is not None and family.task == "language"

    def window(layer: int) -> int | None:
        try:
            return family.window(config, layer) if family and family.window else None
        except (AttributeError, IndexError, TypeError):
            # transformers knows defaults that the configuration leaves out.
            return None

    setting = Setting(
        batch,
        seq,
        itemsize,
        causal=causal,
        absorbing=family is not None and family.rotary is None and plan.shape.heads == plan.shape.kv_heads,
        window=window,
        vocabulary=getattr(config, "vocab_size", None) if causal else None,
    )
    count = step_ops if mode == "decode" else forward_ops
    return count(plan, "dense", setting), count(plan, engine, setting)


def _table(dense: list[Total], compressed: list[Total], engine: str) -> pd.DataFrame:
    """The numbers behind both pictures."""
    return pd.DataFrame(
        [
            {
                "engine": kind,
                "operation": one.name,
                "layers": one.layers,
                "flops": one.flops,
                "bytes": one.bytes,
                "flop_per_byte": one.intensity,
                "least_ms": 1e3 * one.seconds,
                "bound": one.bound,
            }
            for kind, members in (("dense", dense), (engine, compressed))
            for one in members
        ]
    )


# What was measured


def _here(settings: Settings, bench: Bench, mode: Mode) -> list[Measured]:
    shape = (mode, settings.batch, settings.seq, settings.dtype)
    return [point for point in bench.of_model(settings.model) if point.shape == shape]


def _stars(
    settings: Settings, plan: RankPlan, bench: Bench, mode: Mode, name: str, ceiling: Ceiling
) -> list[Star]:
    """The fastest measured way of each engine, of this shape and plan, on the machine whose roof is drawn."""
    found: dict[str, Measured] = {}
    for point in _here(settings, bench, mode):
        engine = point.name.partition("-")[0]
        same = point.machine == ceiling.name and matches(point, plan.shape, plan)
        if same and (engine not in found or point.milliseconds < found[engine].milliseconds):
            found[engine] = point
    return [
        Star(engine, point.intensity, point.flops_s, roofline_words.star(point, ceiling))
        for engine, point in found.items()
    ]


def _measured_line(settings: Settings, plan: RankPlan, bench: Bench, mode: Mode, stars: list[Star]) -> None:
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
    if stars:
        point = _here(settings, bench, mode)[0]
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
