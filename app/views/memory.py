"""Memory: where do the bytes go, and when?"""

from __future__ import annotations

import streamlit as st

from app import choices, echo, session, work
from app.components import jobs, markup, memory_alive, memory_picture
from app.components.page import page
from app.evidence import PREDICTED, Evidence
from app.memory_runs import Shown, forget, is_decoder, last_born, measured_runs, predicted_runs, request_of
from app.state import Settings
from app.words import Segment, mismatch
from flashsvd.errors import format_bytes
from flashsvd.figures.memory_track import Axis
from flashsvd.measure.allocations import alive
from flashsvd.measure.predicted import Prediction, PredictRequest


def render(settings: Settings, evidence: Evidence) -> None:
    """The sentence, the map of one engine's memory, and what is alive at its peak or at the op that was clicked."""
    measured = evidence.comparison is not None and any(
        not run.timeline.empty for run in evidence.comparison.runs
    )
    origin = choices.chosen("memory_from", ("measured", "predicted"), "measured" if measured else "predicted")
    if not measured:
        origin = "predicted"
    request = request_of(settings, evidence)
    shown: Shown | None = None
    if origin == "measured":
        shown = measured_runs(evidence, request)
    elif (found := session.result_of(request)) is not None:
        shown = predicted_runs(found)
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
        memory_picture.panel(shown, track, axis)
    with right, st.container(key="panel_memory_alive", height="stretch"):
        memory_alive.panel(shown, track)
    _foot(session.result_of(request) if origin == "predicted" else None, origin)


def _question(settings: Settings) -> list[Segment]:
    size = f"{settings.batch} x {settings.seq} tokens of {settings.model}"
    return [("Where do the bytes of ", False), (size, True), (" go?", False)]


def _sentence(shown: Shown, engine: str) -> None:
    track, dense = shown.tracks[engine], shown.tracks.get("dense")
    peak = alive(track.found, track.peak_event)
    newest = last_born(peak)
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
                on_change=echo.heard("w_memory_from", _origin_changed),
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
        if origin == "predicted" and is_decoder(evidence):
            on = choices.chosen("memory_cache", ("on", "off"), "on")
            st.session_state["w_memory_cache"] = on == "on"
            st.toggle(
                "Keep the KV cache",
                key="w_memory_cache",
                help="As for a prompt that text is to follow. Measured runs keep none.",
                on_change=echo.heard("w_memory_cache", _cache_changed),
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
    forget()
    if chosen == "predicted" and session.result_of(request) is None:
        work.start(request)


def _engine_changed() -> None:
    choices.keep("memory_engine", "w_memory_engine", "flash")
    forget()


def _cache_changed() -> None:
    choices.choose("memory_cache", "on" if st.session_state["w_memory_cache"] else "off", "on")
    forget()


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
