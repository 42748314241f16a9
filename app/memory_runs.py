"""What the Memory page shows: runs by engine, measured or predicted, and what of them was picked in this tab."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import streamlit as st

from app import choices, session
from app.evidence import PREDICTED, Badge, Evidence
from app.state import Settings
from app.words import provenance
from flashsvd.figures.memory_track import Track
from flashsvd.measure.predicted import Prediction, PredictRequest
from flashsvd.models.family import family_of


@dataclass(frozen=True)
class Shown:
    """What is on screen: runs by engine, and where they come from."""

    tracks: dict[str, Track]
    weights: dict[str, int]
    badge: Badge
    source: str
    timed: bool
    sources: dict[str, dict[str, str]]


def request_of(settings: Settings, evidence: Evidence) -> PredictRequest:
    """What a prediction of the settings is asked for by."""
    cached = is_decoder(evidence) and choices.chosen("memory_cache", ("on", "off"), "on") == "on"
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


def is_decoder(evidence: Evidence) -> bool:
    """Whether the model keeps keys and values for text to follow."""
    return evidence.shape is not None and family_of(evidence.shape.family).task == "language"


def measured_runs(evidence: Evidence, request: PredictRequest) -> Shown:
    """The engines of the comparison on screen that recorded a timeline."""
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


def predicted_runs(found: Prediction) -> Shown:
    """The engines of a prediction."""
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


def last_born(rows: pd.DataFrame) -> Any:
    """The allocation that was born last; None of none."""
    return rows.iloc[int(rows["born"].to_numpy().argmax())] if len(rows) else None


def window_of(track: Track) -> tuple[int, int]:
    """The ops on screen: all of them, or what the range control says."""
    first, _, last = choices.text("memory_window").partition("-")
    if first.isdecimal() and last.isdecimal():
        low, high = int(first[:9]), int(last[:9])
        if 0 <= low < high <= track.last:
            return low, high
    return 0, track.last


def look(track: Track, low: int, high: int) -> None:
    """Puts other ops on screen."""
    _renew()
    keep_window(track, low, high)


def keep_window(track: Track, low: int, high: int) -> None:
    """Keeps what the range control says."""
    choices.choose("memory_window", "" if (low, high) == (0, track.last) else f"{low}-{high}")


def forget() -> None:
    """Another run: its ops are not those that were looked at."""
    choices.choose("memory_window", "")
    st.session_state.pop("memory_pick", None)
    _renew()


def _renew() -> None:
    """New widgets for a window that they did not choose: the browser may still send what the old ones said."""
    st.session_state["memory_turn"] = st.session_state.get("memory_turn", 0) + 1


def picked_of(track: Track) -> tuple[Literal["a", "e"], int] | None:
    """The allocation or the op that was clicked in this run."""
    pick = st.session_state.get("memory_pick")
    if pick is None or pick[0] != track.engine:
        return None
    kind, number = pick[1], pick[2]
    if kind == "a":
        return ("a", number) if 0 <= number < len(track.found) else None
    return ("e", number) if 0 <= number <= track.last else None
