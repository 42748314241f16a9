"""One slider per projection, of all layers or of one."""

from __future__ import annotations

import math

import streamlit as st

from app import echo, session
from app.components import markup
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import Rank, RankPlan

DENSE = "dense"


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
        on_change=echo.heard("w_layer", _layer_picked),
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
