"""Callbacks of widgets whose page has gone by the time that a browser's message arrives."""

from __future__ import annotations

from typing import Any

import pytest
import streamlit as st

from app import choices, echo


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}
    monkeypatch.setattr(st, "session_state", found)
    return found


def test_a_widget_without_a_value_is_not_heard(state: dict[str, Any]) -> None:
    heard: list[tuple[Any, ...]] = []
    callback = echo.heard("w_model", lambda *given: heard.append((state["w_model"], *given)))
    callback()
    assert heard == []
    state["w_model"] = "bert-base"
    callback()
    callback(1, 2)
    assert heard == [("bert-base",), ("bert-base", 1, 2)]


def test_what_is_gone_changes_neither_a_slider_nor_a_choice(state: dict[str, Any]) -> None:
    assert echo.is_echo("w_keep")
    choices.choose("axis", "time", "op")
    choices.keep("axis", "w_axis", "op")
    assert choices.chosen("axis", ("op", "time"), "op") == "time"
    state["w_axis"], state["w_keep"] = "op", 50
    choices.keep("axis", "w_axis", "op")
    assert choices.chosen("axis", ("op", "time"), "op") == "op" and not echo.is_echo("w_keep")
