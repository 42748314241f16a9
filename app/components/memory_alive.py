"""What is alive at the peak of a run or at the op that was clicked, and the facts of one allocation."""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd
import streamlit as st

from app.components import markup
from app.memory_runs import Shown, picked_of
from flashsvd.errors import format_bytes
from flashsvd.figures.memory_track import Track
from flashsvd.measure.allocations import alive

_TABLE_ROWS = 60


def panel(shown: Shown, track: Track) -> None:
    """The table of what is alive, and below it one allocation or op."""
    picked = picked_of(track)
    event = track.peak_event
    if picked is not None:
        event = picked[1] if picked[0] == "e" else event
    rows = alive(track.found, event)
    total = int(rows["bytes"].sum())
    at_peak = event == track.peak_event
    markup.head(
        "What makes up the peak" if at_peak else f"Alive during op {event}",
        f"{format_bytes(total)} in {len(rows):,} allocations" + (f", op {event}" if at_peak else ""),
        shown.badge,
    )
    rows = rows.head(_TABLE_ROWS)
    table = pd.DataFrame(
        {
            "size": [format_bytes(int(count)) for count in rows["bytes"]],
            "share": (100 * rows["bytes"] / max(total, 1)).round().astype(int).to_numpy(),
            "layer": [str(layer + 1) if layer >= 0 else "-" for layer in rows["layer"]],
            "module": [_short(module) for module in rows["module"]],
            "op": [str(op).partition(".")[0] for op in rows["op"]],
            "kind": rows["category"].astype(str).to_numpy(),
        }
    )
    st.dataframe(
        table,
        key=f"memory_table_{track.engine}_{event}",
        hide_index=True,
        height=214,
        row_height=29,
        on_select=lambda: _row_chosen(track, event, rows.index.tolist()),
        selection_mode="single-row",
        column_config={
            "size": st.column_config.TextColumn("size", width=66),
            "share": st.column_config.NumberColumn("share", format="%d %%", width=48),
            "layer": st.column_config.TextColumn("layer", width=42),
            "module": st.column_config.TextColumn("module", width=104),
        },
    )
    if picked is not None and picked[0] == "a":
        _facts(shown, track, track.found.loc[picked[1]])
    elif picked is not None:
        _step(shown, track, event)
    elif len(rows):
        _facts(shown, track, rows.iloc[0], "The largest of them")


def _short(module: Any) -> str:
    parts = str(module).split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[numbers[0] + 1 :]) or "block" if numbers else str(module) or "model"


def _row_chosen(track: Track, event: int, rows: list[int]) -> None:
    state: Any = st.session_state.get(f"memory_table_{track.engine}_{event}")
    chosen = state["selection"]["rows"] if state else []
    if chosen and chosen[0] < len(rows):
        st.session_state["memory_pick"] = (track.engine, "a", rows[chosen[0]])


def _facts(shown: Shown, track: Track, row: Any, title: str = "This allocation") -> None:
    life = f"op {row['born']} to {row['freed']}"
    if shown.timed:
        life += f" · {row['freed_ms'] - row['born_ms']:.1f} ms"
    _list(
        title,
        [
            ("bytes", f"{format_bytes(int(row['bytes']))} · {row['category']}"),
            ("op", str(row["op"])),
            ("layer", str(row["layer"] + 1) if row["layer"] >= 0 else "outside the layers"),
            ("module", str(row["module"]) or "model"),
            ("alive", life),
            ("source", _source(shown, track.engine, str(row["module"]))),
        ],
    )


def _step(shown: Shown, track: Track, event: int) -> None:
    born = track.found[track.found["born"] == event]
    freed = track.found[track.found["freed"] == event]
    first = born.iloc[0] if len(born) else None
    _list(
        f"Op {event}",
        [
            ("op", str(first["op"]) if first is not None else "takes no memory"),
            (
                "layer",
                "-" if first is None else str(first["layer"] + 1) if first["layer"] >= 0 else "outside",
            ),
            ("module", "-" if first is None else str(first["module"]) or "model"),
            ("takes", f"{format_bytes(int(born['bytes'].sum()))} in {len(born)}"),
            ("frees", f"{format_bytes(int(freed['bytes'].sum()))} in {len(freed)}"),
            ("source", "-" if first is None else _source(shown, track.engine, str(first["module"]))),
        ],
    )


def _source(shown: Shown, engine: str, module: str) -> str:
    if engine not in shown.sources:
        return "known once this model is predicted"
    pattern = ".".join("*" if part.isdecimal() else part for part in module.split("."))
    return shown.sources[engine].get(pattern, "not known")


def _list(title: str, facts: list[tuple[str, str]]) -> None:
    rows = "".join(f"<i>{escape(name)}</i><span>{escape(value)}</span>" for name, value in facts)
    st.html(f'<div class="fs-head">{escape(title)}</div><div class="fs-facts">{rows}</div>')
