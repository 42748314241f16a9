"""The rank grid in the page: what is done in it becomes the plan, and a run where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import choices, echo, services, session, work
from app.components import markup, rank_grid
from app.evidence import Sigmas
from app.state import Settings
from flashsvd.errors import FlashSVDError
from flashsvd.models.shape import ModelShape
from flashsvd.plan_edits import apply_edits
from flashsvd.ranks import RankPlan
from flashsvd.tail_curves import tail_curves


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
        on_gesture=echo.heard(
            echo.GRID,
            lambda: take_gestures(st.session_state[echo.GRID]["gesture"], plan.shape, data["id"]),
        ),
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
