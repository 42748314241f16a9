"""The list of kept runs: filters, a table whose rows are picked, and what can be done with the picked ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from app import choices
from app.choices import Choices
from app.components import markup, queue, run_actions, run_files
from app.components.run_words import input_words, score_words
from flashsvd.figures.theme import MIB
from flashsvd.runs.rows import ORDERS, RunRow, Wanted
from flashsvd.store import PURGE_DAYS, RunStore

MOST_ROWS = 5000
_ANY = "all"
_KINDS = {"compare": "comparisons", "curve": "curves"}
_ROW_PX = 30
_MOST_SHOWN = 9


def show(store: RunStore) -> None:
    """Filters, the table and the panel of what is picked."""
    deleted = store.count_deleted()
    wanted = wanted_of(choices.here(), deleted)
    rows = store.rows(MOST_ROWS, wanted)
    chosen = _chosen(store, rows, wanted)
    _top(store, wanted, rows, chosen, deleted)
    run_actions.undo()
    queue.panel()
    _filters(store, wanted, deleted)
    if not rows:
        _empty(store, wanted)
        return
    with st.container(key="panel_runs"):
        _table(rows)
    with st.container(key="panel_picked"):
        if not chosen:
            markup.muted(
                "Tick a run to see it, name it, pin it or load it into the controls. Tick two to compare them."
            )
        elif len(chosen) == 1:
            run_actions.one(chosen[0], wanted)
        else:
            run_actions.several(chosen, wanted)


def wanted_of(said: Choices, deleted: int = 0) -> Wanted:
    """The filters and the order that were chosen. deleted: how many deleted runs there are to look at."""

    def value(name: str) -> str | None:
        found = said.text(f"runs_{name}", _ANY)
        return None if found == _ANY else found

    return Wanted(
        value("model"),
        value("method"),
        value("machine"),
        value("kind"),
        said.text("runs_text"),
        deleted > 0 and said.text("runs_bin") == "yes",
        said.chosen("runs_order", tuple(ORDERS), "newest"),
    )


def _chosen(store: RunStore, rows: Sequence[RunRow], wanted: Wanted) -> list[RunRow]:
    """The picked runs, also those that the filters hide."""
    listed = {row.id: row for row in rows}
    found = []
    for number in run_actions.picked():
        row = listed.get(number) or store.row(number)
        if row is not None and (row.deleted_at is not None) == wanted.deleted:
            found.append(row)
    return found


def _top(
    store: RunStore, wanted: Wanted, rows: Sequence[RunRow], chosen: Sequence[RunRow], deleted: int
) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="runs_top"):
        title = "Deleted runs" if wanted.deleted else "What did I try?"
        st.html(f'<div class="fs-title">{title}</div>', width="content")
        words = f"{len(rows):,} run{'' if len(rows) == 1 else 's'}"
        st.html(f'<div class="fs-muted">{words}</div>', width="content")
        st.space("stretch")
        if deleted:
            st.button(
                "Back to all runs" if wanted.deleted else f"Deleted ({deleted})",
                key="runs_bin",
                type="tertiary",
                help=f"Deleted runs can be brought back for {PURGE_DAYS} days.",
                on_click=_turn_bin,
                args=(not wanted.deleted,),
            )
        run_files.bring(run_actions.pick)
        if rows:
            run_files.take(store, chosen or rows, picked=bool(chosen))


def _turn_bin(on: bool) -> None:
    choices.choose("runs_bin", "yes" if on else "")
    run_actions.pick(())


def _filters(store: RunStore, wanted: Wanted, deleted: int) -> None:
    with st.container(horizontal=True, gap="small", key="runs_filters"):
        st.session_state["w_runs_text"] = wanted.text
        st.text_input(
            "Find",
            key="w_runs_text",
            placeholder="Find: name, model, #12 …",
            label_visibility="collapsed",
            max_chars=100,
            on_change=choices.keep,
            args=("runs_text", "w_runs_text"),
            width=210,
        )
        for name in ("model", "method", "machine", "kind"):
            _filter(store, name, getattr(wanted, name))
        st.session_state["w_runs_order"] = wanted.order
        st.selectbox(
            "Sort",
            tuple(ORDERS),
            key="w_runs_order",
            format_func=lambda order: f"sort: {order}",
            label_visibility="collapsed",
            on_change=choices.keep,
            args=("runs_order", "w_runs_order", "newest"),
            width=150,
        )


def _filter(store: RunStore, name: str, value: str | None) -> None:
    options = [_ANY, *store.values(name)]
    if value is not None and value not in options:
        options.append(value)
    key = f"w_runs_{name}"
    st.session_state[key] = value or _ANY

    def words(option: str) -> str:
        return f"{name}: all" if option == _ANY else _KINDS.get(option, option) if name == "kind" else option

    st.selectbox(
        name.capitalize(),
        options,
        key=key,
        format_func=words,
        label_visibility="collapsed",
        on_change=choices.keep,
        args=(f"runs_{name}", key, _ANY),
        width=136,
    )


def _empty(store: RunStore, wanted: Wanted) -> None:
    with st.container(key="panel_empty"):
        if wanted == Wanted(order=wanted.order):
            markup.empty(
                "No runs kept yet",
                "Press Run live: what ends well is kept here, even when its tab is closed, and so is what the command "
                "line runs. Or import a recording or an exported run.",
            )
            return
        markup.empty("No run matches", "Other runs are there: take a filter away.")
        with st.container(horizontal=True, horizontal_alignment="center", key="runs_clear_row"):
            st.button("Show all runs", key="runs_clear", on_click=_clear)


def _clear() -> None:
    for name in ("model", "method", "machine", "kind"):
        choices.choose(f"runs_{name}", _ANY, _ANY)
    for name in ("text", "bin"):
        choices.choose(f"runs_{name}", "")


def _table(rows: Sequence[RunRow]) -> None:
    numbers = tuple(row.id for row in rows)
    digest = hashlib.sha256(repr(numbers).encode()).hexdigest()[:12]
    key = f"runs_table_{digest}_{st.session_state.get('runs_turn', 0)}"
    if st.session_state.get("runs_table_key") != key:
        # What is picked when a table first stands there; later clicks are the table's own.
        places = {number: place for place, number in enumerate(numbers)}
        st.session_state["runs_table_key"] = key
        st.session_state["runs_table_rows"] = [places[n] for n in run_actions.picked() if n in places]
    st.dataframe(
        frame(rows),
        key=key,
        hide_index=True,
        row_height=_ROW_PX,
        height=_ROW_PX * min(_MOST_SHOWN, len(rows)) + 38,
        on_select=lambda: _select(key, numbers),
        selection_mode="multi-row",
        selection_default={"selection": {"rows": st.session_state["runs_table_rows"]}},
        column_config=_columns(),
        placeholder="",
        alt="Kept runs with their settings, peak memory, latency and score",
    )


def _select(key: str, numbers: Sequence[int]) -> None:
    rows = st.session_state[key]["selection"]["rows"]
    now = [numbers[row] for row in rows if row < len(numbers)]
    hidden = [number for number in run_actions.picked() if number not in set(numbers)]
    before = [number for number in run_actions.picked() if number in now]
    found = [*hidden, *before, *(number for number in now if number not in before)]
    choices.choose("runs_pick", ".".join(map(str, found)))


def frame(rows: Sequence[RunRow]) -> pd.DataFrame:
    """The table as it is shown: one row per run, numbers as numbers so that a click on a head sorts them."""
    return pd.DataFrame(
        {
            "pin": ["★" if row.pinned else "" for row in rows],
            "run": [row.id for row in rows],
            "name": [row.name for row in rows],
            "model": [row.model for row in rows],
            "method": [row.method for row in rows],
            "keep": pd.Series(
                [None if row.keep is None else 100 * row.keep for row in rows], dtype="Float64"
            ),
            "input": [input_words(row) for row in rows],
            "peak": pd.Series(
                [None if row.peak_bytes is None else row.peak_bytes / MIB for row in rows], dtype="Float64"
            ),
            "median": pd.Series([row.median_ms for row in rows], dtype="Float64"),
            "score": [score_words(row) for row in rows],
            "machine": [row.machine for row in rows],
            "when": pd.to_datetime(
                [row.created for row in rows], errors="coerce", utc=True, format="ISO8601"
            ),
        }
    )


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "pin": column.TextColumn("", width=28, help="Pinned: listed first"),
        "run": column.NumberColumn("#", width=44, format="%d"),
        "name": column.TextColumn("Name", width=112),
        "model": column.TextColumn("Model", width=90),
        "method": column.TextColumn("Method", width=62),
        "keep": column.NumberColumn("Keep", width=60, format="%.1f %%", help="Of the factored weights"),
        "input": column.TextColumn("Input", width=102, help="Batch x tokens, precision"),
        "peak": column.NumberColumn(
            "Peak MiB", width=68, format="%.1f", help="Activations of flash where it ran"
        ),
        "median": column.NumberColumn("Median ms", width=76, format="%.1f", help="Of flash where it ran"),
        "score": column.TextColumn("Score", width=110),
        "machine": column.TextColumn("Machine", width=92),
        "when": column.DatetimeColumn("Run", width=98, format="D MMM, HH:mm"),
    }
