"""Bars of classes: what is drawn are the numbers given, in order, and names are words and not tags."""

from __future__ import annotations

import pytest

from flashsvd.figures import theme
from flashsvd.figures.class_bars import class_bars


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_bars_are_the_probabilities_in_the_engines_colours(mode: str) -> None:
    figure = class_bars(["xml", "web"], [0.75, 0.2], [0.5, 0.2004], mode=mode, source="Test CPU")
    dense, compressed = figure.data
    assert tuple(dense.x) == (75, 20) and tuple(compressed.x) == (50, 20.04)
    assert [item.marker.color for item in figure.data] == [
        theme.engine_colour(name, mode) for name in ("dense", "flash")
    ]
    assert tuple(figure.layout.yaxis.ticktext) == ("xml", "web")
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1], "the first class is on top"
    assert [note.text for note in figure.layout.annotations] == ["−25.0", ""]
    assert [note.x for note in figure.layout.annotations] == [75, pytest.approx(20.04)]
    assert "Test CPU" in dense.hovertemplate


def test_names_from_outside_are_words() -> None:
    figure = class_bars(["<b>bold</b>", "a" * 60], [0.6, 0.4], [0.6, 0.4])
    assert figure.layout.yaxis.ticktext[0] == "&lt;b&gt;bold&lt;/b&gt;"
    assert figure.data[0].customdata[0] == "&lt;b&gt;bold&lt;/b&gt;"
    assert len(figure.layout.yaxis.ticktext[1]) == 22
