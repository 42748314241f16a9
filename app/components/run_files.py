"""Runs out as files, and in again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from app import services
from app.components import markup
from flashsvd.errors import FlashSVDError
from flashsvd.runs import export, importing
from flashsvd.runs.rows import RunRow
from flashsvd.store import RunStore

_MOST_EXPORTED = 500


def take(store: RunStore, rows: Sequence[RunRow], *, picked: bool) -> None:
    """The menu that saves runs: the picked ones, or all that are listed."""
    with st.popover("Export"), st.container(width=260):
        some = rows[:_MOST_EXPORTED]
        words = f"{len(some):,} {'picked' if picked else 'listed'} run{'' if len(some) == 1 else 's'}"
        more = "" if len(rows) <= _MOST_EXPORTED else f", the first of {len(rows):,}"
        st.caption(words + more)
        files: tuple[tuple[str, str, str, Callable[[Sequence[export.Kept]], bytes]], ...] = (
            ("CSV: a row per engine", "csv", "text/csv", export.to_csv),
            ("Parquet: a row per engine", "parquet", "application/vnd.apache.parquet", export.to_parquet),
            ("JSON: all of it, can be imported", "json", "application/json", export.to_file),
        )
        for label, ending, mime, write in files:
            _button(store, some, label, ending, mime, write)
        if picked and (len(some) == 1 or (len(some) == 2 and some[0].kind == some[1].kind)):
            _button(store, some, "HTML: one file, opens offline", "html", "text/html", _page)
        else:
            st.caption("HTML holds one run, or two of one kind: pick those.")


def _page(kept: Sequence[export.Kept]) -> bytes:
    from flashsvd.runs.html import page

    return page(kept)


def _button(
    store: RunStore,
    rows: Sequence[RunRow],
    label: str,
    ending: str,
    mime: str,
    write: Callable[[Sequence[export.Kept]], bytes],
) -> None:
    st.download_button(
        label,
        # Made when it is asked for: a page of runs is not read for every look at the list.
        data=lambda: write(export.read_kept(store, rows)),
        file_name=f"flashsvd-{name_of(rows)}.{ending}",
        mime=mime,
        key=f"runs_export_{ending}",
        on_click="ignore",
        width="stretch",
    )


def name_of(rows: Sequence[RunRow]) -> str:
    """Part of a file's name; made of numbers alone, since names of runs may hold anything."""
    return "-".join(["run" if len(rows) == 1 else "runs", *(str(row.id) for row in rows[:2])])


def bring(pick: Callable[[Sequence[int]], None]) -> None:
    """The menu that imports runs; `pick` is told their numbers."""
    turn = st.session_state.setdefault("runs_import_turn", 0)
    with st.popover("Import"), st.container(width=320):
        st.caption("Runs exported here as JSON, or a recording in Parquet.")
        st.file_uploader(
            "Runs or a recording",
            type=["json", "parquet"],
            key=f"w_runs_import_{turn}",
            max_upload_size=importing.MAX_BYTES // 2**20,
            label_visibility="collapsed",
            on_change=_take_in,
            args=(f"w_runs_import_{turn}", pick),
        )
        said: tuple[str, bool] | None = st.session_state.get("runs_import_said")
        if said is not None:
            markup.notice(said[0], error=said[1])


def _take_in(key: str, pick: Callable[[Sequence[int]], None]) -> None:
    file = st.session_state.get(key)
    if file is None:
        return
    st.session_state["runs_import_turn"] += 1
    try:
        report = importing.import_runs(services.store(), file.getvalue())
    except FlashSVDError as error:
        st.session_state["runs_import_said"] = (f"Nothing was imported: {error}", True)
        return
    st.session_state["runs_import_said"] = (words(report), False)
    pick((*report.added, *report.known))


def words(report: importing.ImportReport) -> str:
    """What an import did."""
    parts = []
    for numbers, did in ((report.added, "Imported"), (report.known, "Kept already:")):
        if numbers:
            named = ", ".join(f"#{number}" for number in numbers[:6]) + (" …" if len(numbers) > 6 else "")
            parts.append(f"{did} {named}.")
    return " ".join(parts)
