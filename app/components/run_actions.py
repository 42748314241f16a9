"""Which runs are picked, and what can be done with them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import streamlit as st

from app import choices, echo, services, session
from app.choices import Choices
from app.components import markup, run_words
from flashsvd.errors import FlashSVDError, InputError
from flashsvd.methods import methods
from flashsvd.runs.rows import LONGEST_NAME, RunRow, Wanted
from flashsvd.store import PURGE_DAYS

_LARGEST_INPUT = 65_536


def picked(said: Choices | None = None) -> tuple[int, ...]:
    """Numbers of the picked runs, in the order in which they were picked. said: this tab's choices unless given."""
    words = (said or choices.here()).text("runs_pick").split(".")
    found = [int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 15]
    return tuple(dict.fromkeys(found))


def pick(numbers: Sequence[int]) -> None:
    """Picks these runs and no others."""
    choices.choose("runs_pick", ".".join(map(str, numbers)))
    # A new key: the table takes its picked rows from here, not from what was clicked before.
    st.session_state["runs_turn"] = st.session_state.get("runs_turn", 0) + 1


def one(row: RunRow, wanted: Wanted) -> None:
    """The panel of one picked run."""
    st.html(
        f'<div class="fs-head">{escape(row.title)}{markup.badge(run_words.badge_of(row))}</div>'
        f'<div class="fs-sub">{escape(run_words.about(row))}</div>'
    )
    markup.numbers(run_words.facts(row))
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="runs_actions"):
        if wanted.deleted:
            _restore_button((row.id,))
            return
        if st.button("Load into the controls", key="runs_load", type="primary", help=_LOAD) and load(row):
            st.switch_page("views/overview.py")
        st.session_state["w_runs_name"] = row.name
        st.text_input(
            "Name",
            key="w_runs_name",
            placeholder="Name this run",
            label_visibility="collapsed",
            max_chars=LONGEST_NAME,
            on_change=echo.heard("w_runs_name", _do),
            args=("rename", row.id),
            width=220,
        )
        _pin_and_delete([row])


_LOAD = "Its settings and plan, and its numbers on the Overview."


def several(chosen: Sequence[RunRow], wanted: Wanted) -> None:
    """The panel of two picked runs or more."""
    shown = " · ".join(row.title for row in chosen[:4]) + (" …" if len(chosen) > 4 else "")
    markup.head(f"{len(chosen)} runs picked", shown)
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="runs_actions"):
        numbers = tuple(row.id for row in chosen)
        if wanted.deleted:
            _restore_button(numbers)
            return
        pair = len(chosen) == 2 and chosen[0].kind == chosen[1].kind
        st.button(
            "Compare the two",
            key="runs_compare",
            type="primary",
            disabled=not pair,
            help=None if pair else "Pick two runs of one kind.",
            on_click=choices.choose,
            args=("runs_view", "compare"),
        )
        _pin_and_delete(chosen)
        st.button("Pick none", key="runs_none", type="tertiary", on_click=pick, args=((),))


def _pin_and_delete(chosen: Sequence[RunRow]) -> None:
    numbers = tuple(row.id for row in chosen)
    pinned = all(row.pinned for row in chosen)
    st.button("Unpin" if pinned else "Pin", key="runs_pin", on_click=_do, args=("pin", numbers, not pinned))
    st.button("Delete", key="runs_delete", on_click=_do, args=("delete", numbers))


def _restore_button(numbers: tuple[int, ...]) -> None:
    st.button("Bring back", key="runs_restore", type="primary", on_click=_do, args=("restore", numbers))


def _do(what: str, *arguments: object) -> None:
    """Changes the store; what goes wrong is one line."""
    try:
        store = services.store()
        if what == "rename":
            store.rename(arguments[0], st.session_state["w_runs_name"])  # type: ignore[arg-type]
        elif what == "pin":
            store.pin(*arguments)  # type: ignore[arg-type]
        elif what == "delete":
            rows = [store.row(number) for number in arguments[0]]  # type: ignore[attr-defined]
            store.delete(*arguments)  # type: ignore[arg-type]
            session.store_changed({row.digest for row in rows if row is not None})
            st.session_state["runs_undo"] = arguments[0]
            pick(())
        else:
            store.restore(*arguments)  # type: ignore[arg-type]
            session.store_changed()
            st.session_state.pop("runs_undo", None)
            choices.choose("runs_bin", "")
            pick(arguments[0])  # type: ignore[arg-type]
    except FlashSVDError as error:
        session.notify(str(error))


def undo() -> None:
    """The line after a deletion, with its Undo."""
    gone: tuple[int, ...] = st.session_state.get("runs_undo", ())
    if not gone:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="runs_undo_row"):
        words = f"run #{gone[0]}" if len(gone) == 1 else f"{len(gone)} runs"
        markup.notice(f"Deleted {words}. Deleted runs are kept for {PURGE_DAYS} days.")
        st.button("Undo", key="runs_undo_button", on_click=_do, args=("restore", gone))
        st.button(
            "Close",
            key="runs_undo_close",
            type="tertiary",
            on_click=lambda: st.session_state.pop("runs_undo", None),
        )


def load(row: RunRow) -> bool:
    """Puts a kept run into the controls and on screen; False, with a line, where it does not go there."""
    try:
        if row.method not in methods():
            raise InputError(f"{row.title} used the method {row.method!r}, which is not here")
        if max(row.batch or 1, row.seq or 1) > _LARGEST_INPUT:
            raise InputError(f"{row.title} has an input larger than the controls take ({_LARGEST_INPUT})")
        session.show(services.store().get(row.id), row.digest)
    except FlashSVDError as error:
        session.notify(str(error))
        return False
    return True
