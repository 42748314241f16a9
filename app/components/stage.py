"""What turns slides: a part of the page without a picture that fits the slide to the window and hears the keys."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st


@functools.cache
def _component() -> Any:
    return st.components.v2.component("stage", js=Path(__file__).with_name("stage.js").read_text("utf-8"))


def stage(*, on: bool, turn: Callable[[str], None]) -> None:
    """on: whether the slide fills the window. turn: told "next", "back", "first", "last", "leave" or "run"."""

    def moved() -> None:
        move = st.session_state["stage"].move
        if move in ("next", "back", "first", "last", "leave", "run"):
            turn(move)

    with st.container(key="stage_keys"):
        _component()(key="stage", data={"on": on}, on_move_change=moved)
