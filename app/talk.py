"""The steps of a talk: what was on screen when each was saved. Kept per tab, and in the address by a hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from app import choices, links, session
from app.pages import view_named
from flashsvd.errors import FlashSVDError, InputError

MOST_STEPS = 40
_LONGEST_WORDS = 200
_LONGEST_CHOICE = 20_000
_CHOICE = "present_talk"


@dataclass(frozen=True)
class Step:
    """view: the page that it was saved from. query: settings and choices, as in an address, by name. words: its
    title, which may be empty."""

    view: str
    query: tuple[tuple[str, str], ...]
    words: str = ""


def to_plain(steps: tuple[Step, ...]) -> list[dict[str, Any]]:
    """Steps as plain data."""
    return [{"view": step.view, "query": dict(step.query), "words": step.words} for step in steps]


def from_plain(data: Any) -> tuple[Step, ...]:
    """The inverse of `to_plain`.

    Raises:
        InputError: not a talk, or too long a one.
    """
    if not isinstance(data, list) or not all(isinstance(item, Mapping) for item in data):
        raise InputError("a talk is a list of steps: save it again on the page Present")
    if len(data) > MOST_STEPS:
        raise InputError(f"a talk has at most {MOST_STEPS} steps, got {len(data)}")
    return tuple(_step(item) for item in data)


def _step(item: Mapping[str, Any]) -> Step:
    view, query, words = item.get("view"), item.get("query"), item.get("words", "")
    if view_named(str(view)) is None:
        raise InputError(f"a step's view is the name of a page, got {str(view)[:40]!r}")
    if not isinstance(words, str) or not isinstance(query, Mapping):
        raise InputError("a step has a query and words: save the talk again on the page Present")
    pairs = tuple(sorted((str(name), str(value)) for name, value in query.items()))
    return Step(str(view), pairs, words[:_LONGEST_WORDS])


def steps() -> tuple[Step, ...]:
    """This tab's steps, in order."""
    if "talk" not in st.session_state:
        st.session_state["talk"] = _restored()
    found: tuple[Step, ...] = st.session_state["talk"]
    return found


def keep(new: tuple[Step, ...]) -> None:
    """Makes these the steps; the address follows. The ones before can be brought back by `undo`."""
    st.session_state["talk_before"] = steps()
    st.session_state["talk"] = new
    try:
        choices.choose(_CHOICE, links.keep(to_plain(new)) if new else "")
    except FlashSVDError as error:
        session.notify(f"The talk is in this tab only: {error}")


def undo() -> None:
    """Takes back the last change."""
    before = st.session_state.get("talk_before")
    if before is not None:
        keep(before)


def add_here() -> None:
    """Adds what is on screen."""
    here = st.session_state.get("view", "overview")
    view = "overview" if here == "present" else here
    query = session.whole_query(longest=_LONGEST_CHOICE)
    query.pop(f"p.{_CHOICE}", None)
    keep((*steps(), Step(view, tuple(sorted(query.items())))))


def _restored() -> tuple[Step, ...]:
    digest = choices.text(_CHOICE)
    if not digest:
        return ()
    try:
        return from_plain(links.find(digest))
    except FlashSVDError as error:
        session.notify(f"The talk of this link is not shown: {error}")
        return ()
