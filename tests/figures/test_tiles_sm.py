"""Programs on multiprocessors as a picture: all of them are there, in their places, and thousands stay light."""

from __future__ import annotations

import time

import numpy as np
import pytest

from flashsvd.figures.tiles_sm import MOST_BARS, sm_chart
from tests.onchip.sm_samples import of, trace


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_bar_is_a_program(mode: str) -> None:
    rows = [(0, 0, 1000), (0, 500, 2000), (2, 100, 1500), (0, 1000, 1800)]
    figure = sm_chart(of(rows, sm_count=3), mode=mode)
    bars = figure.data[0]
    assert list(bars.base) == pytest.approx([0.0, 0.5, 0.1, 1.0])
    assert list(bars.x) == pytest.approx([1.0, 1.5, 1.4, 0.8])
    # Two rows to each multiprocessor, around its number.
    assert list(bars.y) == pytest.approx([-0.25, 0.25, 1.75, -0.25])
    assert [list(row) for row in bars.customdata] == [[0, 0, 1], [1, 0, 1], [2, 2, 1], [3, 0, 2]]
    assert list(bars.marker.color) == pytest.approx([0, 0, 0, 1])
    words = " ".join(note.text for note in figure.layout.annotations)
    assert "on 2 multiprocessors, 2 rows each" in words and "tail 0.5 µs" in words
    (tail,) = figure.layout.shapes
    assert (tail.x0, tail.x1) == pytest.approx((1.5, 2.0))


def test_no_tail_is_not_drawn() -> None:
    figure = sm_chart(of([(0, 0, 64), (1, 0, 64)], sm_count=2))
    assert not figure.layout.shapes and len(figure.layout.annotations) == 1


@pytest.mark.parametrize("programs", [256, MOST_BARS, 20_000])
def test_thousands_of_programs_stay_light(programs: int) -> None:
    made = trace(programs, at_once=2)
    started = time.perf_counter()
    text = sm_chart(made).to_json()
    assert time.perf_counter() - started < 3
    assert text is not None and len(text) < 700_000


def test_many_programs_are_cells_of_those_that_ran() -> None:
    made = trace(MOST_BARS + 1, at_once=2)
    cells = sm_chart(made).data[0]
    picture = np.asarray(cells.z)
    assert cells.type == "heatmap" and picture.shape[0] == 264 and picture.dtype == np.uint8
    filled = (picture > 0).mean()
    share = (made.end_ns - made.start_ns).sum() / (264 * made.end_ns.max())
    assert filled == pytest.approx(share, abs=0.01)
    # What starts later is darker, cell by cell of its row.
    assert (picture[:, 2] > 0).all() and (picture[:, 2] == 1).all()
    assert picture[0][picture[0] > 0][-1] > 1


def test_a_bar_at_the_wrong_multiprocessor_is_caught() -> None:
    made = trace(256)
    moved = of(
        [(int(sm) ^ 1, int(a), int(b)) for sm, a, b in zip(made.sm, made.start_ns, made.end_ns, strict=True)]
    )
    assert list(sm_chart(made).data[0].y) != list(sm_chart(moved).data[0].y)
