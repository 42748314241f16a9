"""Memory: where do the bytes go, and when?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import pandas as pd
import streamlit as st

from app import choices, session, work
from app.components import charts, jobs, markup
from app.components.page import page
from app.evidence import PREDICTED, Badge, Evidence
from app.state import Settings
from app.words import Segment, mismatch, provenance
from flashsvd.errors import format_bytes
from flashsvd.figures.memory_bands import MOST_BANDS, Bands, within
from flashsvd.figures.memory_map import Axis, Track, category_colours, memory_map, unit_of
from flashsvd.measure.allocations import CATEGORIES, alive
from flashsvd.measure.predicted import Prediction, PredictRequest
from flashsvd.models.family import family_of

_HEIGHT = 366
_TABLE_ROWS = 60


@dataclass(frozen=True)
class Shown:
    """What is on screen: runs by engine, and where they come from."""

    tracks: dict[str, Track]
    weights: dict[str, int]
    badge: Badge
    source: str
    timed: bool
    sources: dict[str, dict[str, str]]


def render(settings: Settings, evidence: Evidence) -> None:
    """The sentence, the map of one engine's memory, and what is alive at its peak or at the op that was clicked."""
    measured = evidence.comparison is not None and any(
        not run.timeline.empty for run in evidence.comparison.runs
    )
    origin = choices.chosen("memory_from", ("measured", "predicted"), "measured" if measured else "predicted")
    if not measured:
        origin = "predicted"
    request = _request(settings, evidence)
    shown: Shown | None = None
    if origin == "measured":
        shown = _measured(evidence, request)
    elif (found := session.result_of(request)) is not None:
        shown = _predicted(found)
    if shown is not None and shown.tracks:
        names = list(shown.tracks)
        engine = choices.chosen("memory_engine", names, "flash" if "flash" in names else names[-1])
        _sentence(shown, engine)
    else:
        engine = ""
        if evidence.shape is None and evidence.problem:
            return
        markup.sentence(_question(settings), PREDICTED)
    if origin == "measured" and evidence.comparison is not None and not evidence.current:
        markup.notice(mismatch(evidence.comparison, settings))
    axis = _controls(settings, evidence, shown, engine, origin, measured, request)
    if shown is None or not shown.tracks:
        _to_predict(settings, request, shown, session.result_of(request))
        return
    track = shown.tracks[engine]
    left, right = st.columns([66, 34], gap="small")
    with left, st.container(key="panel_memory_map", height="stretch"):
        _map(shown, track, axis)
    with right, st.container(key="panel_memory_alive", height="stretch"):
        _alive(shown, track)
    _foot(session.result_of(request) if origin == "predicted" else None, origin)


def _request(settings: Settings, evidence: Evidence) -> PredictRequest:
    cached = _decoder(evidence) and choices.chosen("memory_cache", ("on", "off"), "on") == "on"
    return PredictRequest(
        settings.model,
        settings.choice(),
        settings.method,
        settings.per_head,
        settings.batch,
        settings.seq,
        settings.dtype,
        cached=cached,
    )


def _decoder(evidence: Evidence) -> bool:
    return evidence.shape is not None and family_of(evidence.shape.family).task == "language"


def _measured(evidence: Evidence, request: PredictRequest) -> Shown:
    result = evidence.comparison
    assert result is not None
    layers = len(result.model.shape.layers)
    runs = [run for run in result.runs if not run.timeline.empty]
    name = f"{result.model.name} {result.created}"
    known = _prediction_of(request)
    return Shown(
        {run.engine: _track(name, run.engine, layers, run.timeline) for run in runs},
        {run.engine: run.weight_bytes for run in runs},
        evidence.comparison_badge,
        provenance(result.machine, result.seed),
        True,
        _sources(known) if known is not None else {},
    )


def _predicted(found: Prediction) -> Shown:
    name = f"predicted {found.request}"
    return Shown(
        {run.engine: _track(name, run.engine, run.layers, run.timeline) for run in found.runs},
        {run.engine: run.weight_bytes for run in found.runs},
        PREDICTED,
        "predicted",
        False,
        _sources(found),
    )


def _prediction_of(request: PredictRequest) -> Prediction | None:
    """What was predicted of this, or else of the same model in this tab: where its modules are written is the same."""
    found: Prediction | None = session.result_of(request)
    others = [
        result for result in st.session_state.get("results", {}).values() if isinstance(result, Prediction)
    ]
    return found or next((other for other in others if other.request.model == request.model), None)


def _sources(found: Prediction) -> dict[str, dict[str, str]]:
    return {run.engine: dict(run.sources) for run in found.runs}


def _track(name: str, engine: str, layers: int, timeline: pd.DataFrame) -> Track:
    content = hashlib.blake2b(timeline["bytes"].to_numpy().tobytes() + timeline["event"].to_numpy().tobytes())
    return _read(name, engine, layers, content.hexdigest(), timeline)


@st.cache_resource(show_spinner=False, max_entries=24)
def _read(name: str, engine: str, layers: int, content: str, _timeline: pd.DataFrame) -> Track:
    return Track.of(engine, _timeline, layers)


def _question(settings: Settings) -> list[Segment]:
    size = f"{settings.batch} x {settings.seq} tokens of {settings.model}"
    return [("Where do the bytes of ", False), (size, True), (" go?", False)]


def _sentence(shown: Shown, engine: str) -> None:
    track, dense = shown.tracks[engine], shown.tracks.get("dense")
    peak = alive(track.found, track.peak_event)
    newest = _newest(peak)
    where = "outside the layers" if newest is None else f"in {newest['module'] or 'the model'}"
    if newest is not None and newest["layer"] >= 0:
        where = f"in layer {newest['layer'] + 1}"
    words: list[Segment] = [
        (f"At its peak, {where}, {engine} holds ", False),
        (format_bytes(track.peak_bytes), True),
    ]
    if dense is not None and engine != "dense":
        words += [("; dense holds ", False), (format_bytes(dense.peak_bytes), True)]
    words.append((".", False))
    markup.sentence(words, shown.badge)


def _newest(rows: pd.DataFrame) -> Any:
    """The allocation that was born last; None of none."""
    return rows.iloc[int(rows["born"].to_numpy().argmax())] if len(rows) else None


def _controls(
    settings: Settings,
    evidence: Evidence,
    shown: Shown | None,
    engine: str,
    origin: str,
    measured: bool,
    request: PredictRequest,
) -> Axis:
    axis: Axis = "op"
    with st.container(horizontal=True, key="memory_top", vertical_alignment="center"):
        if measured:
            st.session_state["w_memory_from"] = origin
            st.segmented_control(
                "Numbers",
                ("measured", "predicted"),
                key="w_memory_from",
                format_func=str.capitalize,
                label_visibility="collapsed",
                required=True,
                on_change=_origin_changed,
                args=(request,),
            )
        if shown is not None and engine:
            st.session_state["w_memory_engine"] = engine
            st.segmented_control(
                "Engine",
                list(shown.tracks),
                key="w_memory_engine",
                label_visibility="collapsed",
                required=True,
                on_change=_engine_changed,
            )
            if shown.timed:
                axis = _axis()
        if origin == "predicted" and _decoder(evidence):
            on = choices.chosen("memory_cache", ("on", "off"), "on")
            st.session_state["w_memory_cache"] = on == "on"
            st.toggle(
                "Keep the KV cache",
                key="w_memory_cache",
                help="As for a prompt that text is to follow. Measured runs keep none.",
                on_change=_cache_changed,
            )
    return axis


def _axis() -> Axis:
    names = {"op": "by op", "time": "by time"}
    axis = choices.chosen("memory_axis", tuple(names), "op")
    st.session_state["w_memory_axis"] = axis
    st.segmented_control(
        "Axis",
        tuple(names),
        key="w_memory_axis",
        format_func=names.__getitem__,
        label_visibility="collapsed",
        required=True,
        on_change=choices.keep,
        args=("memory_axis", "w_memory_axis", "op"),
    )
    return "time" if axis == "time" else "op"


def _origin_changed(request: PredictRequest) -> None:
    chosen = st.session_state["w_memory_from"]
    choices.choose("memory_from", chosen, "measured")
    _forget()
    if chosen == "predicted" and session.result_of(request) is None:
        work.start(request)


def _engine_changed() -> None:
    choices.keep("memory_engine", "w_memory_engine", "flash")
    _forget()


def _cache_changed() -> None:
    choices.choose("memory_cache", "on" if st.session_state["w_memory_cache"] else "off", "on")
    _forget()


def _forget() -> None:
    """Another run: its ops are not those that were looked at."""
    choices.choose("memory_window", "")
    st.session_state.pop("memory_pick", None)
    _renew()


def _renew() -> None:
    """New widgets for a window that they did not choose: the browser may still send what the old ones said."""
    st.session_state["memory_turn"] = st.session_state.get("memory_turn", 0) + 1


def _to_predict(
    settings: Settings, request: PredictRequest, shown: Shown | None, found: Prediction | None
) -> None:
    with st.container(key="panel_memory_empty"):
        if found is not None and shown is not None:
            markup.empty("No engine could be predicted", "; ".join(found.missing.values()))
            return
        running = "predict" in work.active()
        markup.empty(
            "Predicting" if running else "Not predicted yet",
            "The engines run once on tensors that have shapes and no memory: any model and any batch, "
            "in seconds, on this machine.",
        )
        _, middle, _ = st.columns([30, 40, 30])
        with middle:
            if running:
                jobs.panel("predict")
            else:
                st.button(
                    f"Predict {settings.batch} x {settings.seq} tokens in {settings.dtype}",
                    key="run_predict",
                    type="primary",
                    width="stretch",
                    on_click=work.start,
                    args=(request,),
                )


def _window(track: Track) -> tuple[int, int]:
    """The ops on screen: all of them, or what the range control says."""
    first, _, last = choices.text("memory_window").partition("-")
    if first.isdecimal() and last.isdecimal():
        low, high = int(first[:9]), int(last[:9])
        if 0 <= low < high <= track.last:
            return low, high
    return 0, track.last


def _look(track: Track, low: int, high: int) -> None:
    _renew()
    _keep_window(track, low, high)


def _keep_window(track: Track, low: int, high: int) -> None:
    choices.choose("memory_window", "" if (low, high) == (0, track.last) else f"{low}-{high}")


def _picked(track: Track) -> tuple[Literal["a", "e"], int] | None:
    """The allocation or the op that was clicked in this run."""
    pick = st.session_state.get("memory_pick")
    if pick is None or pick[0] != track.engine:
        return None
    kind, number = pick[1], pick[2]
    if kind == "a":
        return ("a", number) if 0 <= number < len(track.found) else None
    return ("e", number) if 0 <= number <= track.last else None


def _map(shown: Shown, track: Track, axis: Axis) -> None:
    mode = markup.mode()
    ghost = shown.tracks.get("dense") if track.engine != "dense" else None
    low, high = _window(track)
    picked = _picked(track)
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
        _look(track, *(track.layer_window(number) if number >= 0 else (0, track.last)))
    else:
        st.session_state["memory_pick"] = (track.engine, kind, number)


def _range(track: Track, low: int, high: int, inside: int, stacked: Bands | None) -> None:
    turn = st.session_state.get("memory_turn", 0)
    key, layer_key = f"w_memory_window_{turn}", f"w_memory_layer_{turn}_{low}_{high}"
    slider, layer, whole, peak = st.columns([52, 20, 14, 14], gap="small", vertical_alignment="center")
    with slider:
        st.session_state[key] = (low, high)
        st.slider(
            "Ops shown",
            0,
            max(track.last, 1),
            key=key,
            label_visibility="collapsed",
            on_change=lambda: _slid(track, key),
        )
    with layer:
        names = ("all layers", *(f"layer {index + 1}" for index in range(track.layers)))
        here = next((n for n in range(track.layers) if track.layer_window(n) == (low, high)), None)
        st.session_state[layer_key] = names[0 if here is None else here + 1]
        st.selectbox(
            "Layer",
            names,
            key=layer_key,
            label_visibility="collapsed",
            on_change=lambda: _to_layer(track, names.index(st.session_state[layer_key]) - 1),
        )
    with whole:
        st.button(
            "Whole run", key="memory_whole", width="stretch", on_click=_look, args=(track, 0, track.last)
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
        _keep_window(track, low, high)


def _to_layer(track: Track, layer: int) -> None:
    _look(track, *(track.layer_window(layer) if layer >= 0 else (0, track.last)))


def _to_peak(track: Track) -> None:
    peak = alive(track.found, track.peak_event)
    newest = _newest(peak)
    if newest is not None and newest["layer"] >= 0:
        _look(track, *track.layer_window(int(newest["layer"])))
    else:
        _look(track, max(0, track.peak_event - 20), min(track.last, track.peak_event + 20))
    st.session_state["memory_pick"] = (track.engine, "e", track.peak_event)


def _alive(shown: Shown, track: Track) -> None:
    picked = _picked(track)
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


def _foot(found: Prediction | None, origin: str) -> None:
    if found is None:
        markup.muted(
            "Memory that this run allocated, op by op; by time, the recording's own overhead is in it.",
            "fs-foot",
        )
        return
    run = found.runs[0]
    words = f"Computed in {found.seconds:.1f} s without memory, as the engines run in plain torch on a CPU"
    if run.computed_layers < run.layers:
        words += f"; {run.computed_layers} of {run.layers} layers were run, the others are like them"
    if found.missing:
        words += ". Not predicted: " + "; ".join(f"{name}: {why}" for name, why in found.missing.items())
    markup.muted(words + ".", "fs-foot")


page(render)
