"""Ways to change the plan: presets, the grid, sliders, a table of heads, typed rules, a file. All write one
canonical plan."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from app import choices, echo, services, session, work
from app.components import front_menu, markup, rank_grid
from app.components.budget import budget
from app.state import Settings, read_plan
from flashsvd import allocate
from flashsvd.allocate.within import least_cut
from flashsvd.errors import FlashSVDError, PlanError
from flashsvd.models.shape import ModelShape
from flashsvd.plan_edits import apply_edits
from flashsvd.ranks import Rank, RankPlan
from flashsvd.tail_curves import tail_curves

Sigmas = Mapping[tuple[int, str], NDArray[np.float64]]

DENSE = "dense"
MAX_PLAN_BYTES = 2**20


def presets(plan: RankPlan, settings: Settings, sigmas: Sigmas, parameters: int | None) -> None:
    """One button per rule; undo and redo beside them. parameters: of the whole model, if known."""
    shape = plan.shape
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="presets"):
        st.html('<div class="fs-title">What can I cut?</div>', width="content")
        st.button(
            "uniform",
            key="preset_uniform",
            help=f"The same keep everywhere: the sidebar's {100 * settings.keep:g} %.",
            on_click=lambda: session.update(plan=None),
        )
        for share in (90, 95, 99):
            st.button(
                f"energy {share} %" if share == 90 else f"{share} %",
                key=f"preset_energy_{share}",
                disabled=not sigmas,
                help="The smallest rank of each unit that holds this share of its squared singular values."
                if sigmas
                else _NO_SIGMAS,
                on_click=_apply,
                args=(lambda share=share: allocate.energy(shape, sigmas, share / 100),),
            )
        st.button(
            "sensitivity",
            key="preset_sensitivity",
            disabled=not sigmas,
            help=_SENSITIVITY if sigmas else _NO_SIGMAS,
            on_click=_apply,
            args=(lambda: _as_large(plan, sigmas),),
        )
        budget(shape, settings, sigmas, parameters)
        front_menu.front_menu(settings)
        with st.popover("ladder"):
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


_NO_SIGMAS = "Needs the singular values: compute them below."
_SENSITIVITY = (
    "As many parameters as the plan has now, given where they hold most: a head or projection whose singular values "
    "fall slowly loses more with every rank that is cut. Measured are the singular values; no text is run. For "
    "the loss on text, choose “least expected KL” under budget…."
)


def _as_large(plan: RankPlan, sigmas: Sigmas) -> RankPlan:
    return least_cut(
        plan.shape, sigmas, allocate.Budget("parameters", plan.kept_parameters), allocate.Costs.parameters()
    )


def _apply(make: Callable[[], RankPlan]) -> None:
    try:
        session.set_plan(make())
    except FlashSVDError as error:
        session.notify(str(error))


def grid(
    plan: RankPlan, settings: Settings, sigmas: Sigmas, parameters: int | None, at: rank_grid.At
) -> None:
    """The rank grid. at: the cell whose spectrum is shown; a gesture that ends elsewhere moves it."""
    data = _model(plan.shape, settings, sigmas, parameters)
    rank_grid.rank_grid(
        plan,
        data,
        mode=markup.mode(),
        at=at,
        seen=st.session_state.get("grid_seen", 0),
        can=(session.can("undo"), session.can("redo")),
        on_gesture=lambda: take_gestures(st.session_state[echo.GRID]["gesture"], plan.shape, data["id"]),
    )


def _model(shape: ModelShape, settings: Settings, sigmas: Sigmas, parameters: int | None) -> dict[str, Any]:
    """What the grid's browser side counts with, made once."""
    # The singular values are known by their object: a tab keeps a few, and replaces them whole.
    mark = (shape, settings.model, settings.method, settings.dtype, parameters, id(sigmas) if sigmas else 0)
    kept: tuple[Any, Sigmas, dict[str, Any]] | None = st.session_state.get("grid_model")
    if kept is None or kept[0] != mark:
        curves = tail_curves(shape, sigmas) if sigmas else None
        data = rank_grid.model_data(shape, curves, parameters=parameters, dtype=settings.dtype)
        kept = st.session_state["grid_model"] = (mark, sigmas, data)
    return kept[2]


def take_gestures(value: object, shape: ModelShape, model_id: str) -> None:
    """Makes what was done in the grid, oldest first, each its own step of undo.

    What the browser sends is checked; nonsense is one line, and the plan stays. model_id: of the model on screen; what
    was done on another one is dropped.
    """
    seen = st.session_state.get("grid_seen", 0)
    if not isinstance(value, Mapping):
        return
    st.session_state["grid_seen"] = max(seen, rank_grid.last_number(value))
    edited = False
    try:
        if value.get("model") != model_id:
            return
        message = rank_grid.message(value, shape, seen)
        for gesture in message.gestures:
            if gesture.kind == "undo":
                session.undo()
            elif gesture.kind == "redo":
                session.redo()
            elif gesture.kind == "edit":
                plan = session.settings().choice().resolve(shape)
                session.set_plan(apply_edits(plan, gesture.edits))
            edited = edited or gesture.kind != "look"
        if message.at is not None:
            look_at(*message.at)
    except FlashSVDError as error:
        session.notify(f"The grid's edit was not made: {error}")
        return
    if edited and runs_on_release():
        # The run of the plan before says nothing of this one: it makes room.
        st.session_state["run_again"] = "compare" in work.active()
        work.cancel("compare")
        work.start_compare()


def runs_on_release() -> bool:
    """Whether the end of a gesture starts the measured run; unless said otherwise, on a GPU."""
    return choices.chosen("ranks_run", ("on", "off"), _usual_run()) == "on"


def run_on_release(wanted: bool) -> None:
    choices.choose("ranks_run", "on" if wanted else "off", _usual_run())


def _usual_run() -> str:
    # The first look at a page must not start the worker; what it runs on is known from the second.
    if "looked" not in st.session_state:
        return "off"
    try:
        machines = services.jobs().machines()
    except FlashSVDError:
        return "off"
    return "on" if any(machine.device == "cuda" for machine in machines) else "off"


def run_again() -> None:
    """Starts the run of the plan that was changed while another one ran, once that has ended."""
    if st.session_state.get("run_again") and "compare" not in work.active():
        st.session_state["run_again"] = False
        work.start_compare()
        st.rerun()


def look_at(layer: int, name: str, unit: int) -> None:
    """Shows this unit's spectrum."""
    st.session_state["ranks_layer"] = layer
    st.session_state["w_unit_slot"] = name
    st.session_state["w_unit_head"] = unit


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
        on_change=_layer_picked,
    )
    return picked - 1 if picked else None


def _layer_picked() -> None:
    if st.session_state["w_layer"]:
        st.session_state["ranks_layer"] = st.session_state["w_layer"] - 1


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
        echo.show(key, _middle(ranks, options))
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
    if echo.is_echo(f"rank_{name}"):
        return
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
    echo.show("w_mirror", draft["text"] if draft else text)
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
    if echo.is_echo("w_mirror"):
        return
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
        st.download_button(
            "Download ranks (CSV)",
            data=lambda: rank_table(plan).to_csv(index=False),
            file_name=f"{model.replace('/', '-')}-ranks.csv",
            mime="text/csv",
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


def rank_table(plan: RankPlan) -> pd.DataFrame:
    """A row for every unit: layer and head from 1, rank (none where dense), break-even, parameters kept."""
    return pd.DataFrame(
        [
            (
                layer + 1,
                slot.name,
                unit + 1,
                rank,
                slot.break_even,
                slot.unit_parameters if rank is None else slot.factor_parameters(rank),
            )
            for layer, slot in plan.shape
            for unit, rank in enumerate(plan.get(layer, slot.name))
        ],
        columns=["layer", "projection", "head", "rank", "break_even", "parameters"],
    ).astype({"rank": "Int64"})


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
