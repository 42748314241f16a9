"""A figure for the back row: pixels grow, data stay."""

from __future__ import annotations

import plotly.graph_objects as go

from flashsvd.figures.larger import larger


def test_pixels_grow_and_data_stay() -> None:
    figure = go.Figure(
        [
            go.Bar(x=[1, 2], y=["a", "b"], width=0.5, textfont={"size": 10}),
            go.Scatter(x=[1, 2], y=[3, 4], marker={"size": [4, 6]}, line={"width": 2}),
        ],
        layout={
            "height": 100,
            "font": {"size": 12},
            "margin": {"l": 40, "t": 0},
            "annotations": [{"text": "x", "x": 3, "xshift": 8, "ax": 5, "axref": "x", "font": {"size": 9}}],
            "xaxis": {"range": [0, 5], "tickfont": {"size": 11}},
        },
    )
    before = figure.to_plotly_json()
    big = larger(figure, 1.5)
    bar, scatter = big.data
    assert (bar.width, bar.textfont.size) == (0.5, 15) and list(bar.x) == [1, 2]
    assert list(scatter.marker.size) == [6, 9] and scatter.line.width == 3
    assert (big.layout.height, big.layout.font.size, big.layout.margin.l, big.layout.margin.t) == (
        150,
        18,
        60,
        0,
    )
    (note,) = big.layout.annotations
    assert (note.x, note.xshift, note.ax, note.font.size) == (3, 12, 5, 13.5)
    assert list(big.layout.xaxis.range) == [0, 5] and big.layout.xaxis.tickfont.size == 16.5
    assert figure.to_plotly_json() == before
