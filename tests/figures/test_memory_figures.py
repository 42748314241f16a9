"""Bands, areas and the lane: what is drawn is what the timeline says."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.figures.memory_bands import MOST_BANDS, bands, within
from flashsvd.figures.memory_lane import lane
from flashsvd.figures.memory_map import drawn_as_bands, memory_map
from flashsvd.figures.memory_track import Track
from flashsvd.measure import allocations as module
from flashsvd.measure.allocations import alive, allocations, levels
from flashsvd.recording import find, read
from flashsvd.results import TIMELINE_COLUMNS
from tests.app.fakes import MIB, events


@st.composite
def timelines(draw: st.DrawFn) -> pd.DataFrame:
    """Births and deaths in any order that a recorder could write."""
    rows: list[tuple[object, ...]] = [(0, "weights", "", -1, "weight", 1000, 0, 0.0)]
    living: list[tuple[object, ...]] = []
    for event in range(1, draw(st.integers(1, 25))):
        for _ in range(draw(st.integers(0, 2))):
            kind = draw(st.sampled_from(["activation", "workspace", "kv cache"]))
            layer = draw(st.integers(-1, 2))
            born = (draw(st.sampled_from("ab")), f"layers.{layer}", layer, kind, draw(st.integers(1, 9)))
            living.append(born)
            rows.append((event, *born[:4], born[4], 0, float(event)))
        for _ in range(draw(st.integers(0, len(living)))):
            dead = living.pop(draw(st.integers(0, len(living) - 1)))
            rows.append((event, *dead[:4], -int(str(dead[4])), 0, event + 0.5))
    frame = pd.DataFrame(rows, columns=list(TIMELINE_COLUMNS))
    frame["live_bytes"] = frame["bytes"].cumsum()
    return frame


@given(timelines())
def test_allocations_add_up_to_the_timeline(frame: pd.DataFrame) -> None:
    found, level = allocations(frame), levels(frame)
    births = frame[(frame["bytes"] > 0) & (frame["category"] != "weight")]
    assert len(found) == len(births) and (found["freed"] >= found["born"]).all()
    if not len(births):
        return
    assert level.total.max() == frame["live_bytes"].max() - 1000
    during = dict(zip(level.x[::2].astype(int), level.total[::2], strict=True))
    for event, total in during.items():
        assert alive(found, event)["bytes"].sum() == total


@given(timelines())
def test_bands_stack_without_gap_or_overlap(frame: pd.DataFrame) -> None:
    found = allocations(frame)
    if not len(found):
        return
    placed = found.assign(x0=found["born"].astype(float), x1=found["freed"] + 1.0)
    stacked = bands(placed, 0.0, 1000.0)
    assert len(stacked.bands) + stacked.merged == len(found)
    for event in range(int(found["freed"].max()) + 1):
        x = event + 0.5
        spans = []
        for band in stacked.bands:
            if band.x[0] <= x < band.x[-1]:
                low = band.low[np.searchsorted(band.x, x, side="right") - 1]
                spans.append((low, low + band.bytes))
        spans.sort()
        edges = [0.0, *(high for _, high in spans)]
        assert [low for low, _ in spans] == edges[:-1]


def test_forgotten_deaths_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = events(4 * MIB)
    born_only = frame[frame["bytes"] > 0]
    assert levels(born_only).total.max() > 2 * levels(frame).total.max()
    assert module.allocations(born_only)["freed"].nunique() == 1


def test_what_an_op_takes_within_itself_dies_with_it() -> None:
    rows = [
        (1, "mm", "a", 0, "workspace", 5, 0, 1.0),
        (2, "mm", "a", 0, "workspace", 5, 0, 2.0),
        (2, "mm", "a", 0, "workspace", -5, 0, 2.0),
        (4, "mm", "a", 0, "workspace", -5, 0, 4.0),
    ]
    found = allocations(pd.DataFrame(rows, columns=list(TIMELINE_COLUMNS)))
    assert list(zip(found["born"], found["freed"], strict=True)) == [(1, 4), (2, 2)]


@pytest.mark.parametrize("engine", ["dense", "lowrank", "flash"])
def test_the_bundled_recording_is_drawn_to_its_peak(engine: str) -> None:
    path = find("stdlib-bert")
    assert path is not None
    comparison = read(path).comparison
    run, dense = comparison.run(engine), comparison.run("dense")
    assert run is not None and dense is not None
    track, ghost = Track.of(engine, run.timeline, 6), Track.of("dense", dense.timeline, 6)
    assert track.peak_bytes == pytest.approx(run.peak_activation_bytes, rel=0.01)
    figure, stacked = memory_map(track, (0, track.last), ghost=ghost)
    tops = [np.nanmax(np.array(t.y, dtype=float)) for t in figure.data if t.yaxis is None]
    assert max(tops) * MIB == pytest.approx(max(track.peak_bytes, ghost.peak_bytes), rel=0.01)
    assert (stacked is not None) == drawn_as_bands(track, 0, track.last)
    for layer in range(6):
        low, high = track.layer_window(layer)
        figure, stacked = memory_map(track, (low, high), ghost=ghost, axis="time", mode="dark")
        assert stacked is not None
        kinds = {
            point[0] for trace in figure.data if trace.customdata is not None for point in trace.customdata
        }
        assert kinds == {"a", "l"}


def test_twenty_thousand_events_stay_small_and_quick() -> None:
    frame = events(64 * MIB, layers=80, per_layer=260)
    assert len(frame) > 20_000
    track = Track.of("flash", frame, 80)
    started = time.process_time()
    figure, stacked = memory_map(track, (0, track.last), ghost=track)
    assert time.process_time() - started < 2.0
    assert stacked is None and len(figure.to_json()) < 1_500_000
    low, high = track.layer_window(40)
    figure, stacked = memory_map(track, (low, high))
    assert stacked is not None and len(stacked.bands) <= MOST_BANDS
    assert len(within(track.found, low, high)) == len(stacked.bands) + stacked.merged


def test_the_lane_names_layers_then_modules() -> None:
    frame = events(4 * MIB)
    track = Track.of("dense", frame, 6)
    placed = track.found.assign(x0=track.found["born"].astype(float), x1=track.found["freed"] + 1.0)
    assert [s.label for s in lane(placed, 0, track.last)][1:] == ["1", "2", "3", "4", "5", "6"]
    low, high = track.layer_window(2)
    inside = lane(placed, low, high)
    assert inside and all(s.layer == 2 for s in inside) and inside[0].start == low
    assert inside[-1].stop == high


def test_an_empty_timeline_draws_an_empty_picture() -> None:
    frame = pd.DataFrame([(0, "weights", "", -1, "weight", 9, 9, 0.0)], columns=list(TIMELINE_COLUMNS))
    track = Track.of("dense", frame, 1)
    figure, stacked = memory_map(track, (0, track.last))
    assert stacked is not None and not stacked.bands and figure.data
