"""Widgets that the page sets by itself: telling what a person changed from what a browser had not yet heard of.

A browser sends the values of all widgets with every message, also with those that a timer sends. One that left before
the page's last change arrived holds older values, which look like changes back.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

GRID = "rank_grid"
"""The key of the rank grid, whose gestures may follow one another faster than the page is drawn."""

_MOST = 12
_SURE_SECONDS, _LIKELY_SECONDS = 30.0, 2.0


def show(key: str, value: Any) -> None:
    """Sets a widget; what it held before is what a late message may still say."""
    before = st.session_state.get(key, value)
    if before != value:
        replaced: list[tuple[Any, float]] = _replaced().setdefault(key, [])
        replaced.append((before, monotonic()))
        del replaced[:-_MOST]
    st.session_state[key] = value


def heard(key: str, act: Callable[..., object]) -> Callable[..., None]:
    """A widget's callback that does nothing where the widget has no value any more: what a person did reaches the
    server after the page has gone."""

    def callback(*arguments: Any) -> None:
        if key in st.session_state:
            act(*arguments)

    return callback


def is_echo(key: str) -> bool:
    """In a widget's callback: whether its value is one that the page has replaced, and that no person gave again, or
    none at all (`heard`).

    Surely so where the value came with a gesture in the grid or with a timer's message; likely where the page replaced
    it a moment ago.
    """
    if key not in st.session_state:
        return True
    grid = st.session_state.get(GRID) or {}
    context = get_script_run_ctx()
    by_timer = context is not None and bool(context.fragment_ids_this_run)
    window = _SURE_SECONDS if by_timer or grid.get("gesture") is not None else _LIKELY_SECONDS
    now, value = monotonic(), st.session_state[key]
    return any(value == old and now - at < window for old, at in _replaced().get(key, ()))


def _replaced() -> dict[str, list[tuple[Any, float]]]:
    found: dict[str, list[tuple[Any, float]]] = st.session_state.setdefault("replaced_values", {})
    return found
