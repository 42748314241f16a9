"""Figures of two kept runs hold what the runs hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flashsvd.allocate import uniform
from flashsvd.figures import theme
from flashsvd.figures.runs_curves import runs_curves
from flashsvd.figures.runs_latency import runs_latency
from flashsvd.figures.runs_memory import runs_memory
from flashsvd.figures.runs_ranks import runs_ranks
from flashsvd.side_by_side import rank_cells
from tests.app import fakes

MODES = ("light", "dark")


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_drawn_with_both_peaks(mode: str) -> None:
    a = fakes.run("flash", 1.0, 4 * fakes.MIB, None)
    b = fakes.run("flash", 1.0, 9 * fakes.MIB, None)
    figure = runs_memory(a, b, (6, 6), mode=mode)
    for trace, run in zip(figure.data, (a, b), strict=True):
        live = run.timeline["live_bytes"] - run.weight_bytes
        assert max(trace.y) * fakes.MIB == pytest.approx(live.max())
    assert figure.data[0].line.color == theme.engine_colour("flash", mode) != figure.data[1].line.color
    assert [note.text for note in figure.layout.annotations] == ["<b>A peak 4 MiB</b>", "<b>B peak 9 MiB</b>"]
    assert figure.layout.xaxis.title.text == "layer"


def test_models_of_other_depth_share_an_axis_of_depth() -> None:
    a = fakes.run("flash", 1.0, 4 * fakes.MIB, None, layers=2)
    b = fakes.run("flash", 1.0, 4 * fakes.MIB, None, layers=8)
    figure = runs_memory(a, b, (2, 8))
    assert "depth" in figure.layout.xaxis.title.text
    for trace, layers in zip(figure.data, (2, 8), strict=True):
        assert np.all(np.diff(np.array(trace.x, dtype=float)) >= 0)
        assert 100 <= max(trace.x) <= 100 * (1 + 0.3 / layers)


def test_runs_without_a_timeline_are_an_empty_figure() -> None:
    run = fakes.run("flash", 1.0, 4 * fakes.MIB, None)
    empty = dataclasses.replace(run, timeline=run.timeline.iloc[:0])
    assert len(runs_memory(empty, empty, (6, 6)).data) == 0
    assert len(runs_memory(empty, run, (6, 6)).data) == 1


def test_latency_shows_median_and_quantiles_of_every_engine() -> None:
    a, b = fakes.comparison(), fakes.comparison(flash_ms=77.0)
    figure = runs_latency(a, b, ("dense", "flash"))
    assert [trace.name for trace in figure.data] == ["dense A", "dense B", "flash A", "flash B"]
    last, run = figure.data[3], b.run("flash")
    assert run is not None
    assert last.x[0] == run.latency_ms.p50
    assert last.x[0] + last.error_x.array[0] == pytest.approx(run.latency_ms.p80)
    assert last.x[0] - last.error_x.arrayminus[0] == pytest.approx(run.latency_ms.p20)


def test_ranks_are_coloured_only_where_they_differ() -> None:
    a = uniform(fakes.SHAPE, 0.5)
    b = a.replace(1, "up", (40,)).replace(2, "down", (None,))
    cells = rank_cells(a, b)
    assert cells is not None
    heat = runs_ranks(cells, 6, fakes.SHAPE.slot_names).data[0]
    values = [value for row in heat.z for value in row if value is not None]
    assert len(values) == 2 and min(values) < 0 < max(values)
    up = list(fakes.SHAPE.slot_names).index("up")
    assert heat.z[up][1] < 0 and heat.text[up][1].endswith("→ 40")
    assert "L2.up" in heat.customdata[up][1]


@pytest.mark.parametrize("mode", MODES)
def test_two_curves_share_one_axis(mode: str) -> None:
    a, b = fakes.curve(), fakes.language_curve()
    figure = runs_curves(a, a, mode=mode)
    assert len(figure.data) == 2 and max(figure.data[0].y) <= 100
    assert runs_curves(b, b, mode=mode).layout.yaxis.type == "log"
