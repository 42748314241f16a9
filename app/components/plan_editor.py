"""Ways to change the plan: presets, sliders, a table of heads, typed rules, a file. All write one canonical plan."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from app import session
from app.components import markup
from app.state import Settings, read_plan
from flashsvd import allocate
from flashsvd.errors import FlashSVDError, PlanError
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import Rank, RankPlan

Sigmas = Mapping[tuple[int, str], NDArray[np.float64]]

DENSE = "dense"
MAX_PLAN_BYTES = 2**20


def presets(shape: ModelShape, settings: Settings, sigmas: Sigmas) -> None:
    """One button per rule; undo and redo beside them."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="presets"):
        st.html('<div class="fs-title">Which heads and layers can I cut?</div>', width="content")
        st.button(
            "uniform",
            key="preset_uniform",
            help=f"The same keep everywhere: the sidebar's {100 * settings.keep:g} %.",
            on_click=lambda: session.update(plan=None),
        )
        for share in (90, 95, 99):
            st.button(
                f"energy {share} %",
                key=f"preset_energy_{share}",
                disabled=not sigmas,
                help="The smallest rank of each unit that holds this share of its squared singular values."
                if sigmas
                else "Needs the singular values: compute them below.",
                on_click=_apply,
                args=(lambda share=share: allocate.energy(shape, sigmas, share / 100),),
            )
        with st.popover("published ladder"):
            st.caption("The ranks that the FlashSVD paper reports for BERT-base, scaled to this model.")
            for rung in allocate.LADDER:
                st.button(
                    f"{rung.cut} cut: {rung.head}, {rung.feed_forward}, {rung.output}",
                    key=f"preset_ladder_{rung.head}",
                    width="stretch",
                    on_click=_apply,
                    args=(lambda rung=rung: allocate.ladder(shape, rung),),
                )
        st.button("all dense", key="preset_dense", on_click=_apply, args=(lambda: RankPlan.dense(shape),))
        st.space("stretch")
        st.button("↶", key="undo", help="Undo", disabled=not session.can("undo"), on_click=session.undo)
        st.button("↷", key="redo", help="Redo", disabled=not session.can("redo"), on_click=session.redo)


def _apply(make: Callable[[], RankPlan]) -> None:
    try:
        session.set_plan(make())
    except FlashSVDError as error:
        session.notify(str(error))


def layer_picker(shape: ModelShape) -> int | None:
    """The layer being edited, counted from 0; None for all of them."""
    options = range(len(shape.layers) + 1)
    if st.session_state.get("w_layer", 0) not in options:
        st.session_state["w_layer"] = 0
    picked: int = st.selectbox(
        "Layer",
        options,
        key="w_layer",
        label_visibility="collapsed",
        format_func=lambda layer: f"Layer {layer}" if layer else "All layers",
    )
    return picked - 1 if picked else None


def sliders(plan: RankPlan, layer: int | None) -> None:
    """One slider per projection, from rank 1 to dense."""
    columns = st.columns(2, gap="medium", wrap=False)
    mixed = []
    for index, name in enumerate(plan.shape.slot_names):
        layers = [i for i, slots in enumerate(plan.shape.layers) if any(slot.name == name for slot in slots)]
        if layer is not None:
            layers = [i for i in layers if i == layer]
        if not layers:
            continue
        slot = plan.shape.slot(layers[0], name)
        ranks = [rank for i in layers for rank in plan.get(i, name)]
        span = _span(ranks)
        if len(set(ranks)) > 1:
            mixed.append(f"{name} {span}")
        options = [*range(1, math.ceil(slot.break_even)), DENSE]
        key = f"rank_{name}"
        st.session_state[key] = _middle(ranks, options)
        with columns[index % 2]:
            st.select_slider(
                f"{name} · break-even {slot.break_even:.0f}",
                options,
                key=key,
                on_change=_slide,
                args=(plan, layers, name),
            )
    if mixed:
        markup.muted("Not all the same: " + ", ".join(mixed) + ". A slider sets all of them.", "fs-foot")


def _span(ranks: list[Rank]) -> str:
    numbers = sorted(rank for rank in ranks if rank is not None)
    if not numbers:
        return DENSE
    text = f"{numbers[0]}" if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"
    return text + (f" and {DENSE}" if None in ranks else "")


def _middle(ranks: list[Rank], options: list[int | str]) -> int | str:
    """Where a slider stands for several ranks: the middle one, so that it is one of theirs."""
    ordered = sorted(ranks, key=lambda rank: math.inf if rank is None else rank)
    rank = ordered[(len(ordered) - 1) // 2]
    return rank if rank in options and rank is not None else DENSE


def _slide(plan: RankPlan, layers: list[int], name: str) -> None:
    value = st.session_state[f"rank_{name}"]
    rank = None if value == DENSE else int(value)
    for layer in layers:
        plan = plan.replace(layer, name, (rank,) * plan.shape.slot(layer, name).units)
    session.set_plan(plan)


def head_table(plan: RankPlan) -> None:
    """Layers by heads for q, k or v. An empty cell is dense."""
    names = [name for name in plan.shape.slot_names if plan.shape.slot(0, name).heads]
    if not any(plan.shape.slot(0, name).units > 1 for name in names):
        markup.muted("q, k and v are factored as whole matrices: there are no heads to set on their own.")
        return
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        with st.container():
            markup.head("Ranks per head", "type a rank; empty: dense")
        name = st.segmented_control(
            "Projection", names, default=names[0], key="w_table", label_visibility="collapsed", required=True
        )
    name = name or names[0]
    slot = plan.shape.slot(0, name)
    frame = pd.DataFrame(
        [list(plan.get(layer, name)) for layer in range(len(plan.shape.layers))],
        index=pd.Index([f"L{layer + 1}" for layer in range(len(plan.shape.layers))], name="layer"),
        columns=[f"h{head + 1}" for head in range(slot.units)],
        dtype="Int64",
    )
    # The editor remembers its own edits by key: a new plan needs a new key, or every second edit is lost.
    key = f"table_{name}_{plan.digest}_{st.session_state.setdefault('table_turn', 0)}"
    st.data_editor(
        frame,
        key=key,
        num_rows="fixed",
        placeholder=DENSE,
        height="content" if len(frame) <= 12 else 460,
        column_config={
            column: st.column_config.NumberColumn(
                min_value=1, max_value=slot.full_rank, step=1, width="small"
            )
            for column in frame.columns
        },
        on_change=_edit_table,
        args=(plan, name, key),
    )


def _edit_table(plan: RankPlan, name: str, key: str) -> None:
    st.session_state["table_turn"] += 1
    _apply(lambda: with_cells(plan, name, st.session_state[key]["edited_rows"]))


def with_cells(plan: RankPlan, name: str, edited: Mapping[int, Mapping[str, int | None]]) -> RankPlan:
    """The plan with cells of the head table changed: rows by position, columns h1 on, None for dense."""
    for layer, cells in edited.items():
        row = list(plan.get(int(layer), name))
        for column, value in cells.items():
            row[int(column.removeprefix("h")) - 1] = None if value is None else int(value)
        plan = plan.replace(int(layer), name, tuple(row))
    return plan


def mirror(plan: RankPlan) -> None:
    """The plan as typed rules. What cannot be read stays in the box, with its line below."""
    draft = st.session_state.get("draft")
    text = plan.to_text()
    if draft is not None and draft["over"] != text:
        draft = None
        st.session_state.pop("draft")
    st.session_state["w_mirror"] = draft["text"] if draft else text
    st.text_area(
        "Typed mirror",
        key="w_mirror",
        height=74,
        on_change=_type,
        args=(plan,),
        help="Rules such as `*.qkv: 25 L2.q.h3: 16 *.up: dense`; a later rule wins. Ctrl+Enter applies.",
    )
    if draft:
        markup.notice(draft["line"], error=True)


def _type(plan: RankPlan) -> None:
    text = st.session_state["w_mirror"]
    try:
        session.set_plan(read_plan(text, plan.shape))
        st.session_state.pop("draft", None)
    except FlashSVDError as error:
        st.session_state["draft"] = {"text": text, "over": plan.to_text(), "line": str(error)}


def plan_file(plan: RankPlan, model: str) -> None:
    """Takes the plan away as a file, or brings one."""
    with st.popover("Plan file", width="stretch"):
        st.download_button(
            "Download plan (JSON)",
            data=json.dumps(plan.to_json(), indent=1),
            file_name=f"{model.replace('/', '-')}-plan.json",
            mime="application/json",
            on_click="ignore",
            width="stretch",
        )
        st.file_uploader(
            "Open a plan",
            type="json",
            key="w_upload",
            max_upload_size=1,
            on_change=_upload,
            args=(plan.shape,),
        )


def _upload(shape: ModelShape) -> None:
    file = st.session_state.get("w_upload")
    if file is None:
        return
    try:
        session.set_plan(read_plan_file(file.getvalue(), shape))
    except PlanError as error:
        session.notify(f"The plan file was not used: {error}")


def read_plan_file(data: bytes, shape: ModelShape) -> RankPlan:
    """A plan for this model from the bytes of a file. Raises PlanError for anything else."""
    if len(data) > MAX_PLAN_BYTES:
        raise PlanError(f"the file has {len(data)} bytes; a plan has at most {MAX_PLAN_BYTES}")
    try:
        plan = RankPlan.from_json(data.decode("utf-8"))
        plan.check_fits(shape)
    except PlanError:
        raise
    except (UnicodeDecodeError, RecursionError, TypeError, AttributeError, ValueError) as error:
        raise PlanError(
            f"this is not a rank plan ({type(error).__name__}); download one to see the form"
        ) from None
    return plan
