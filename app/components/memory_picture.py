"""The map of one engine's memory, and the controls of the ops that it shows."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import echo
from app.components import charts, markup
from app.memory_runs import Shown, keep_window, last_born, look, picked_of, window_of
from flashsvd.errors import format_bytes
from flashsvd.figures.memory_bands import MOST_BANDS, Bands, within
from flashsvd.figures.memory_map import memory_map, unit_of
from flashsvd.figures.memory_shapes import category_colours
from flashsvd.figures.memory_track import Axis, Track
from flashsvd.measure.allocations import CATEGORIES, alive

_HEIGHT = 366


def panel(shown: Shown, track: Track, axis: Axis) -> None:
    """The map with its colour key, and below it the range, the layer and the peak."""
    mode = markup.mode()
    ghost = shown.tracks.get("dense") if track.engine != "dense" else None
    low, high = window_of(track)
    picked = picked_of(track)
    figure, stacked = memory_map(
        track,
        (low, high),
        axis=axis,
        ghost=ghost,
        selected=picked[1] if picked and picked[0] == "a" else None,
        moment=picked[1] if picked and picked[0] == "e" else None,
        mode=mode,
        height=_HEIGHT,
        source=shown.source,
    )
    colours = category_colours(track.engine, mode)
    present = [name for name in CATEGORIES if track.levels.bytes[name].any()]
    dashed = " · dashed: dense, layer by layer" if ghost is not None else ""
    markup.head(
        f"{track.engine} over {'its ops' if axis == 'op' else 'time'}",
        f"{unit_of(track, ghost)} beyond {format_bytes(shown.weights[track.engine])} of weights{dashed}",
        shown.badge,
        [(colours[name], name) for name in present],
    )
    inside = within(track.found, low, high)
    charts.chart(
        figure,
        key="memory_map",
        name=f"Memory of {track.engine} over its run",
        data=inside.drop(columns=["x0", "x1"], errors="ignore"),
        on_select=lambda: _clicked(track),
        selection_mode="points",
    )
    _range(track, low, high, len(inside), stacked)


def _clicked(track: Track) -> None:
    event: Any = st.session_state.get("memory_map")
    points = event["selection"]["points"] if event else []
    data = next((point["customdata"] for point in points if point.get("customdata")), None)
    if data is None:
        return
    kind, number = data[0], int(data[1])
    if kind == "l":
        look(track, *(track.layer_window(number) if number >= 0 else (0, track.last)))
    else:
        st.session_state["memory_pick"] = (track.engine, kind, number)


def _range(track: Track, low: int, high: int, inside: int, stacked: Bands | None) -> None:
    turn = st.session_state.get("memory_turn", 0)
    key, layer_key = f"w_memory_window_{turn}", f"w_memory_layer_{turn}_{low}_{high}"
    slider, layer, whole, peak = st.columns([52, 20, 14, 14], gap="small", vertical_alignment="center")
    with slider:
        # Once, and not in every run: a browser that is told a value late forgets the key that was pressed meanwhile.
        if key not in st.session_state:
            st.session_state[key] = (low, high)
        st.slider(
            "Ops shown",
            0,
            max(track.last, 1),
            key=key,
            label_visibility="collapsed",
            on_change=echo.heard(key, lambda: _slid(track, key)),
        )
    with layer:
        names = ("all layers", *(f"layer {index + 1}" for index in range(track.layers)))
        here = next((n for n in range(track.layers) if track.layer_window(n) == (low, high)), None)
        stands = st.session_state[layer_key] = names[0 if here is None else here + 1]
        st.selectbox(
            "Layer",
            names,
            key=layer_key,
            label_visibility="collapsed",
            on_change=echo.heard(
                layer_key, lambda: _layer_chosen(track, names, st.session_state[layer_key], stands)
            ),
        )
    with whole:
        st.button(
            "Whole run", key="memory_whole", width="stretch", on_click=look, args=(track, 0, track.last)
        )
    with peak:
        st.button("The peak", key="memory_peak", width="stretch", on_click=lambda: _to_peak(track))
    if stacked is None:
        words = f"{inside:,} allocations here, drawn as areas: with {MOST_BANDS} at most, each is a band of its own."
    else:
        words = f"{len(stacked.bands):,} allocations, each a band over its life."
        if stacked.merged:
            words += f" {stacked.merged:,} of {format_bytes(stacked.merged_bytes)} or less are left out."
    markup.muted(words + " Click one, or a layer below it.", "fs-foot")


def _slid(track: Track, key: str) -> None:
    low, high = st.session_state[key]
    if low < high:
        keep_window(track, low, high)


def _layer_chosen(track: Track, names: tuple[str, ...], chosen: str, stood: str) -> None:
    # A key pressed while the page is drawn makes the new list say what it already stands at: nobody chose that.
    if chosen == stood:
        return
    layer = names.index(chosen) - 1
    look(track, *(track.layer_window(layer) if layer >= 0 else (0, track.last)))


def _to_peak(track: Track) -> None:
    peak = alive(track.found, track.peak_event)
    newest = last_born(peak)
    if newest is not None and newest["layer"] >= 0:
        look(track, *track.layer_window(int(newest["layer"])))
    else:
        look(track, max(0, track.peak_event - 20), min(track.last, track.peak_event + 20))
    st.session_state["memory_pick"] = (track.engine, "e", track.peak_event)
