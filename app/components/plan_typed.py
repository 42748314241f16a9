"""Ranks typed in: a table of heads, and the plan as rules."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from app import echo, session
from app.components import markup
from app.state import read_plan
from flashsvd.errors import FlashSVDError
from flashsvd.ranks import RankPlan

_DENSE = "dense"


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
        placeholder=_DENSE,
        height="content" if len(frame) <= 12 else 460,
        column_config={
            column: st.column_config.NumberColumn(
                min_value=1, max_value=slot.full_rank, step=1, width="small"
            )
            for column in frame.columns
        },
        on_change=echo.heard(key, _edit_table),
        args=(plan, name, key),
    )


def _edit_table(plan: RankPlan, name: str, key: str) -> None:
    st.session_state["table_turn"] += 1
    session.try_plan(lambda: with_cells(plan, name, st.session_state[key]["edited_rows"]))


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
