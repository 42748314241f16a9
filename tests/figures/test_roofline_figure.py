"""The roof, an arc for every move, and the least times of both models."""

from __future__ import annotations

import pytest

from flashsvd.allocate import by_role
from flashsvd.figures.least_times import least_times, time_unit
from flashsvd.figures.roofline import Star, roofline
from flashsvd.figures.roofline_moves import moves_of
from flashsvd.models.sources import resolve, shape_of
from flashsvd.roofline import Ceiling, Setting, forward_ops, step_ops, totals

H200 = Ceiling("H200", 790e12, 4.2e12, "MEASURED", "2026-11-21")
SHAPE = shape_of(resolve("bert-base"))
assert SHAPE is not None
PLAN = by_role(SHAPE, 40, 240, 240)
SETTING = Setting(32, 512, 2, absorbing=True)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_operation_stands_on_the_roof_andmoves_of(mode: str) -> None:
    dense = totals(forward_ops(PLAN, "dense", SETTING), H200)
    flash = totals(forward_ops(PLAN, "flash", SETTING), H200)
    star = Star("flash", 400.0, 400e12, "flash, 4 ms")
    figure = roofline(H200, dense, flash, "flash", measured=[star], mode=mode)
    by_name = {trace.name: trace for trace in figure.data}
    assert {"roof", "dense", "flash", "flash, measured", "arrow"} <= set(by_name)
    for trace in (by_name["dense"], by_name["flash"]):
        assert list(trace.y) == pytest.approx([H200.attainable(x) / 1e12 for x in trace.x])
    words = [note.text for note in figure.layout.annotations]
    assert "up · down" in words and "790 TFLOP/s" in words and "4.2 TB/s" in words
    low, high = figure.layout.yaxis.range
    assert 10**low < 400 < 790 < 10**high


def test_moves_to_one_place_are_one() -> None:
    dense = totals(forward_ops(PLAN, "dense", SETTING), H200)
    flash = totals(forward_ops(PLAN, "flash", SETTING), H200)
    names = [move.names for move in moves_of(dense, flash, H200)]
    assert ("up", "down") in names and sum(map(len, names)) == 5
    alone = Setting(1, 512, 2)
    stay = moves_of(
        totals(step_ops(PLAN, "dense", alone), H200), totals(step_ops(PLAN, "flash", alone), H200), H200
    )
    assert len(stay) == 1 and stay[0].near, "a step moves every weight once: all stand at 1 FLOP per byte"


def test_bars_say_what_binds() -> None:
    dense = totals(forward_ops(PLAN, "dense", SETTING), H200)
    flash = totals(forward_ops(PLAN, "flash", SETTING), H200)
    figure = least_times(dense, flash, "flash")
    assert [bar.name for bar in figure.data] == ["dense", "flash"]
    assert all(text.endswith(("memory", "compute")) for bar in figure.data for text in bar.text)
    assert figure.layout.yaxis.categoryarray[0] == "feed-forward", "after up and down, from the top"


def test_units_of_time() -> None:
    assert [time_unit(s)[0] for s in (2.0, 0.5, 2e-3, 1e-5)] == ["s", "ms", "ms", "µs"]
