"""The figures that lessons draw: films of tiles, amounts and lines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.allocate import by_role
from flashsvd.errors import InputError
from flashsvd.figures.amounts import amounts, lines
from flashsvd.figures.scattered import scattered
from flashsvd.figures.tiles_film import program_film
from flashsvd.figures.tiles_program import program_tiles
from flashsvd.models.sources import resolve, shape_of
from flashsvd.onchip.calls import KernelCall, calls_of
from flashsvd.onchip.compiled import Compiled, shipped
from flashsvd.onchip.programs import Moment, moment, steps


@pytest.fixture(scope="module")
def calls() -> dict[str, KernelCall]:
    return calls_of(
        by_role(shape_of(resolve("bert-base")), head=40, feed_forward=240, output=240), 0, 32, 512, "bf16"
    )


def moments(call: KernelCall, count: int) -> list[Moment]:
    row = shipped().find(call, "H100 SXM")
    assert isinstance(row, Compiled)
    places = [(program, step) for program in range(3) for step in range(steps(row, call, program))]
    return [moment(row, call, *place) for place in places[:count]]


@pytest.mark.parametrize("kernel", ["attention", "ffn"])
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_each_frame_of_a_film_is_the_picture_of_its_moment(
    calls: dict[str, KernelCall], kernel: str, mode: str
) -> None:
    shown = moments(calls[kernel], 7)
    film = program_film(shown, mode=mode)
    assert len(film.frames) == len(film.layout.sliders[0].steps) == 7
    for number, (now, frame) in enumerate(zip(shown, film.frames, strict=True)):
        picture = program_tiles(now, mode=mode)
        assert list(frame.traces) == list(range(len(picture.data)))
        for cells, trace in zip(frame.data, picture.data, strict=True):
            assert [list(row) for row in cells.z] == [list(row) for row in trace.z]
        words = frame.layout.annotations[-1].text
        assert f"program {number}" in words and now.where in words and now.words in words
    first = [[list(row) for row in trace.z] for trace in film.data]
    assert first == [[list(row) for row in trace.z] for trace in program_tiles(shown[0], mode=mode).data]
    assert len({str([[list(row) for row in cells.z] for cells in frame.data]) for frame in film.frames}) > 1


def test_a_film_shows_one_kernel(calls: dict[str, KernelCall]) -> None:
    with pytest.raises(InputError, match="at least one moment"):
        program_film([])
    with pytest.raises(InputError, match="must show the same parts"):
        program_film([*moments(calls["attention"], 1), *moments(calls["ffn"], 1)])


AMOUNT = st.floats(0, 1e6)
PARTS = st.dictionaries(st.sampled_from(["read x", "make q", "attend", "store"]), AMOUNT, min_size=1)


@given(st.dictionaries(st.sampled_from(["dense", "lowrank", "flash"]), PARTS, min_size=1))
def test_bars_are_as_long_as_their_parts_together(ways: dict[str, dict[str, float]]) -> None:
    drawn = amounts(ways, unit="MiB")
    for number, (way, parts) in enumerate(ways.items()):
        assert sum(bar.x[number] for bar in drawn.data) == pytest.approx(sum(parts.values()))
        note = drawn.layout.annotations[number]
        assert note.y == way and note.x == pytest.approx(sum(parts.values()))
    names = {name for parts in ways.values() for name in parts}
    assert {bar.name for bar in drawn.data} == names and len(drawn.data) == len(names)


@given(
    st.dictionaries(
        st.sampled_from(["L1", "L2", "L3", "L4"]),
        st.tuples(st.floats(0.1, 1e3), st.floats(1e-5, 1e3)),
        min_size=1,
    ),
    st.booleans(),
)
def test_points_stand_where_their_numbers_say(points: dict[str, tuple[float, float]], log_y: bool) -> None:
    drawn = scattered(points, x="error", y="KL", log_y=log_y)
    (trace,) = drawn.data
    assert dict(zip(trace.text, zip(trace.x, trace.y, strict=True), strict=True)) == points
    low, high = drawn.layout.yaxis.range
    for x, y in points.values():
        assert drawn.layout.xaxis.range[0] <= x <= drawn.layout.xaxis.range[1]
        assert low <= (math.log10(y) if log_y else y) <= high


def test_lines_are_drawn_as_given_and_named() -> None:
    series = {"stairs": ([16, 32, 64], [1.0, 2.0, 2.0]), "paper": ([16, 32, 64], [0.5, 1.0, 2.0])}
    drawn = lines(series, x="rank", y="tiles", here=32, level=(1.5, "limit"), steps=("stairs",), log_x=True)
    assert [(list(one.x), list(one.y)) for one in drawn.data] == list(series.values())
    assert [one.line.shape for one in drawn.data] == ["hv", "linear"]
    assert {note.text for note in drawn.layout.annotations} == {"stairs", "paper", "limit"}
    assert list(drawn.layout.xaxis.tickvals) == [16, 32, 64] and drawn.layout.xaxis.type == "log"
    assert not lines(series, x="rank", y="tiles", legend=True).layout.annotations
