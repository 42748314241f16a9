"""Pictures that turn, as a notebook shows them: what is put out, in which order, and what a turn draws anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
import plotly.graph_objects as go
import pytest

from flashsvd.errors import FlashSVDError
from flashsvd.teaching import menu, slider, turn, turning
from flashsvd.teaching.pictures import PLOTLY, redraw

Output = dict[str, Any]


class Handle:
    """Stands for IPython's: keeps what it was given."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []

    def update(self, data: Output, raw: bool) -> None:
        assert raw
        self.outputs.append(data)


def line(rank: int, on: str = "T4") -> tuple[go.Figure, str]:
    if rank > 8:
        raise FlashSVDError("rank is too <large>")
    return go.Figure(go.Scatter(y=[rank]), layout={"height": 200}), f"rank {rank} on {on}"


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], Handle]:
    """What a cell puts out, widgets as widgets, and the handle of its figure."""
    put_out: list[Any] = []
    handle = Handle()

    def shown(data: Output) -> Handle:
        put_out.append(data)
        return handle

    def widget_or(make: Callable[[], ipywidgets.Widget], fallback: str) -> None:
        put_out.append(make())

    monkeypatch.setattr(turning, "shown", shown)
    monkeypatch.setattr(turning, "widget_or", widget_or)
    return put_out, handle


def test_jupyterlab_gets_another_kind_of_output_before_it_gets_the_next_figure() -> None:
    # Its plotly draws nothing where a figure stands already, and its output area keeps what draws one kind.
    handle = Handle()
    redraw(handle, line(3)[0], "rank 3")  # type: ignore[arg-type]
    between, drawn = handle.outputs
    assert PLOTLY not in between and "height:200px" in between["text/html"]
    assert drawn[PLOTLY]["data"][0]["y"] == [3] and drawn["text/plain"] == "rank 3"


def test_controls_stand_above_the_picture(notebook: tuple[list[Any], Handle]) -> None:
    # JupyterLab makes all outputs of a cell anew when the first of them changes, and with them a slider that is held.
    put_out, _ = notebook
    turn(line, rank=slider(range(1, 10), 2), on=menu(["T4", "H200"]))
    box, figure = put_out
    assert [type(part) for part in box.children] == [
        ipywidgets.SelectionSlider,
        ipywidgets.Dropdown,
        ipywidgets.HTML,
    ]
    assert figure[PLOTLY]["data"][0]["y"] == [2]


def test_a_turn_draws_the_picture_and_the_words_anew(notebook: tuple[list[Any], Handle]) -> None:
    put_out, handle = notebook
    turn(line, rank=slider(range(1, 10), 2), on=menu(["T4", "H200"]))
    rank, on, words = put_out[0].children
    assert words.value == "rank 2 on T4" and handle.outputs == []
    rank.value = 5
    on.value = "H200"
    assert words.value == "rank 5 on H200"
    assert [output[PLOTLY]["data"][0]["y"] for output in handle.outputs if PLOTLY in output] == [[5], [5]]
    rank.value = 9
    assert words.value == "rank is too &lt;large&gt;" and len(handle.outputs) == 4


def test_a_list_is_as_wide_as_a_slider(notebook: tuple[list[Any], Handle]) -> None:
    put_out, _ = notebook
    turn(line, rank=slider(range(1, 10), 2), on=menu(["T4", "H200"]))
    rank, on, _ = put_out[0].children
    assert rank.layout.width == on.layout.width == "26em"
