"""Figures from invented data: what is drawn, in which unit and colour, and that no peak is lost."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.allocate import uniform
from flashsvd.figures import theme
from flashsvd.figures.curve import curve
from flashsvd.figures.grid import rank_grid
from flashsvd.figures.sampling import envelope
from flashsvd.figures.score_axis import ScoreAxis
from flashsvd.figures.spectrum import spectrum
from flashsvd.figures.timeline import MAX_POINTS, layer_progress, timeline, track
from flashsvd.ranks import RankPlan
from flashsvd.results import TIMELINE_COLUMNS, EngineRun, Quantiles
from tests.app import fakes

MIB = 2**20


def trace(figure: go.Figure, name: str) -> go.Scatter:
    return next(item for item in figure.data if item.name == name)


def texts(figure: go.Figure) -> str:
    return " | ".join(note.text for note in figure.layout.annotations)


def spiked(count: int, at: int, spike: int) -> EngineRun:
    """`count` small births and deaths in 4 layers, and one birth of `spike` bytes that dies at once."""
    moved = np.where(np.arange(count) % 2 == 0, 1000, -1000)
    moved[at], moved[at + 1] = spike, -spike
    frame = pd.DataFrame(
        {
            "event": np.arange(count),
            "op": "mm",
            "module": "m",
            "layer": np.arange(count) * 4 // count,
            "category": "workspace",
            "bytes": moved,
            "live_bytes": np.cumsum(moved),
            "time_ms": 0.0,
        }
    )[list(TIMELINE_COLUMNS)]
    return EngineRun("flash", "torch", Quantiles(1, 1, 1), 1, spike, 0, None, None, None, frame)


@pytest.mark.parametrize("at", [0, 2, 7778, 13_332, 19_998])
def test_one_tall_event_among_20000_survives_thinning(at: int) -> None:
    run = spiked(20_000, at, 48 * MIB)
    drawn = track(run, 4)
    assert len(drawn.x) <= MAX_POINTS
    assert drawn.total.max() == 48 * MIB
    figure = timeline(run, 4)
    assert max(trace(figure, "workspace").y) == 48.0


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=400), st.integers(4, 60))
def test_envelope_keeps_ends_highest_and_lowest(values: list[float], limit: int) -> None:
    array = np.array(values)
    kept = envelope(array, limit)
    assert len(kept) <= max(limit, 4)
    assert kept[0] == 0 and kept[-1] == len(array) - 1
    assert list(kept) == sorted(set(kept))
    assert array[kept].max() == array.max() and array[kept].min() == array.min()


def test_layer_progress_spans_the_same_axis_for_runs_of_any_length() -> None:
    short, long = fakes.events(MIB, per_layer=10), fakes.events(MIB, per_layer=400)
    for events in (short, long):
        x = layer_progress(events, 6)
        layer = events["layer"].to_numpy()
        assert np.all(np.diff(x) >= 0)
        for index in range(6):
            inside = x[layer == index]
            assert inside.min() == index and inside.max() < index + 1
        assert x[0] < 0 and x[-1] >= 6


def test_memory_freed_late_does_not_jump_back() -> None:
    events = fakes.events(MIB)
    late = events.iloc[[60]].assign(event=9999, layer=0)
    x = layer_progress(pd.concat([events.iloc[:150], late, events.iloc[150:]]), 6)
    assert np.all(np.diff(x) >= 0)


def test_timeline_stacks_categories_and_outlines_dense() -> None:
    result = fakes.comparison()
    flash, dense = result.run("flash"), result.run("dense")
    assert flash and dense
    figure = timeline(flash, 6, ghost=dense, source="CPU, 2 cores, seed 0")
    assert [item.name for item in figure.data] == ["weights", "activation", "workspace", "dense"]
    assert trace(figure, "activation").fill == "tozeroy" and trace(figure, "workspace").fill == "tonexty"
    assert trace(figure, "dense").line.dash and trace(figure, "dense").fill is None
    assert trace(figure, "workspace").fillcolor == theme.engine_colour("flash", "light")
    assert max(trace(figure, "workspace").y) == pytest.approx(4.1, rel=0.05)
    assert np.all(np.array(trace(figure, "workspace").y) >= np.array(trace(figure, "activation").y))
    assert max(trace(figure, "dense").y) == pytest.approx(18, rel=0.05)
    assert "flash peak 4.1 MiB" in texts(figure) and "dense peak 18 MiB" in texts(figure)
    assert "weights 15 MiB, dense 24 MiB" in texts(figure) and "not to scale" in texts(figure)
    assert "CPU, 2 cores, seed 0" in trace(figure, "workspace").hovertemplate


def test_timeline_of_dense_alone_has_no_ghost_and_an_empty_one_draws() -> None:
    result = fakes.comparison()
    dense = result.run("dense")
    assert dense
    assert [item.name for item in timeline(dense, 6, ghost=dense).data] == [
        "weights",
        "activation",
        "workspace",
    ]
    empty = dataclasses.replace(dense, timeline=dense.timeline.iloc[:0])
    assert timeline(empty, 6).data


def test_engine_colours_are_one_each_and_differ_in_both_modes() -> None:
    for mode in ("light", "dark"):
        assert len({theme.engine_colour(engine, mode) for engine in ("dense", "lowrank", "flash")}) == 3


def test_curve_has_band_dense_line_floor_and_marker() -> None:
    result = fakes.curve()
    figure = curve(result, here=(0.5, fakes.metric(0.88)), plan_keep=0.3, machine="CPU, 2 cores")
    line = trace(figure, "curve")
    assert list(line.x) == sorted(line.x) and max(line.x) == pytest.approx(100)
    assert max(line.y) == pytest.approx(89, abs=0.5)
    band = trace(figure, "95 % band")
    half = len(band.y) // 2
    assert all(high > low for high, low in zip(band.y[:half], reversed(band.y[half:]), strict=True))
    assert {89.0, 11.0} <= {shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1}
    assert "dense 89.0" in texts(figure) and "you are here" in texts(figure) and "your plan" in texts(figure)
    for words in ("n = 512", "seed 0", "CPU, 2 cores"):
        assert words in line.customdata[0]


def test_a_curve_of_perplexity_is_logarithmic_and_names_its_tokens() -> None:
    result = fakes.language_curve()
    figure = curve(result, here=(0.5, fakes.perplexity(11.5)), plan_keep=0.3, machine="CPU, 2 cores")
    line = trace(figure, "curve")
    assert list(line.y) == sorted(line.y, reverse=True) and line.y[-1] == pytest.approx(4.1, rel=0.01)
    axis = figure.layout.yaxis
    assert axis.type == "log"
    low, high = (10**end for end in axis.range)
    assert low < 0.97 * min(line.y) and high > 1.03 * max(line.y)
    assert all(low <= mark <= high for mark in axis.tickvals) and len(axis.tickvals) >= 3
    assert {4.1} == {shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1}
    notes = {note.text: note.y for note in figure.layout.annotations}
    assert notes["dense 4.10"] == pytest.approx(math.log10(4.1))
    assert notes["<b>you are here</b>"] == pytest.approx(math.log10(11.5))
    assert "commonest" not in texts(figure)
    assert "perplexity 4.12 (3.99 to 4.24)<br>n = 32,768 tokens, seed 0" in line.customdata[-1]


@pytest.mark.parametrize("values", [[4.0, 4.1], [4.0, 7.0], [4.0, 30.0], [4.0, 500.0], [4.0, 105_474.0]])
def test_a_logarithmic_axis_has_some_marks_at_any_height(values: list[float]) -> None:
    settings = ScoreAxis(percent=False).settings("light", values)
    assert 3 <= len(settings["tickvals"]) <= 8
    assert len(set(settings["ticktext"])) == len(settings["tickvals"])
    assert settings["range"][0] < math.log10(min(values)) < math.log10(max(values)) < settings["range"][1]


def test_curve_draws_points_as_they_come_and_nothing_at_all() -> None:
    figure = curve(None, coming=fakes.curve_points(3))
    assert [item.name for item in figure.data] == ["coming"] * 3
    assert curve(None).data == ()


def test_spectrum_marks_rank_energy_and_break_even() -> None:
    slot = fakes.SHAPE.slot(0, "q")
    sigma = np.array([2.0, 1.0, 1.0, *[0.0] * 61])
    figure = spectrum(sigma, 1, slot)
    assert "rank 1" in texts(figure) and "66.7 % energy" in texts(figure)
    assert "break-even<br>51" in texts(figure)
    assert len(trace(figure, "kept").x) == 1
    assert "kept dense" in texts(spectrum(sigma, None, slot))


def test_grid_colours_by_break_even_and_marks_dense() -> None:
    plan = RankPlan.from_text(fakes.SHAPE, "*.*: dense L2.q.h3: 16", uniform(fakes.SHAPE, 0.5))
    figure = rank_grid(plan, chosen=(1, "q", 2))
    q = trace(figure, "q")
    assert [item.name for item in figure.data] == ["q", "k", "v", "o", "up", "down"]
    assert np.shape(q.z) == (6, 4)
    assert q.z[1][2] == pytest.approx(16 / plan.shape.slot(1, "q").break_even)
    assert q.text[1][2] == "" and q.text[0][0] == "╱" and q.z[0][0] == 1.0
    assert "L2.q.h3: rank 16" in q.customdata[1][2]
    assert len(figure.layout.shapes) == 1


def test_figures_draw_in_both_modes_and_hold_no_nan() -> None:
    result = fakes.comparison()
    flash = result.run("flash")
    assert flash
    for mode in ("light", "dark"):
        for figure in (timeline(flash, 6, mode=mode), curve(fakes.curve(), mode=mode)):
            for item in figure.data:
                assert all(math.isfinite(value) for value in item.y)
