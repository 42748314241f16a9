"""Boxes to guess in, and pictures that turn, outside and inside a notebook."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.errors import FlashSVDError, InputError
from flashsvd.teaching import choose, menu, predict, slider, turn
from flashsvd.teaching.boxes import chosen, judged, read_number
from flashsvd.teaching.pictures import framed
from flashsvd.teaching.shipped import fenced


@given(st.floats(-1e12, 1e12), st.sampled_from(["{:g}", "{:.3f}", "{:,.2f}", " {:e} "]))
def test_a_number_is_read_as_it_is_written(value: float, form: str) -> None:
    text = form.format(value)
    assert read_number(text) == pytest.approx(float(text.replace(",", "")), rel=1e-12)


@pytest.mark.parametrize("text", ["", "many", "1/0", "3 apples", "--4", "1e", "0x10", "<b>3</b>"])
def test_anything_else_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="expected a number such as") as caught:
        read_number(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("192", "MiB", 192),
        ("192 MiB", "MiB", 192),
        ("192mib", "MiB", 192),
        ("0.5 GiB", "MiB", 512),
        ("0.5 GiB", "KiB", 2**19),
        ("1.6", "%", 1.6),
        ("1.6 %", "%", 1.6),
        ("128 registers", "registers", 128),
        ("6.5×", "", 6.5),
        ("8 x", "", 8),
        ("108 %", "", 1.08),
    ],
)
def test_a_guess_is_in_the_unit_beside_its_box(text: str, unit: str, value: float) -> None:
    assert read_number(text, unit) == pytest.approx(value)
    assert judged(text, value, unit, 0.05, "is that").startswith("Right")


@pytest.mark.parametrize(("text", "unit"), [("5 %", "MiB"), ("5 MiB", "registers"), ("5 KiB", "%")])
def test_a_guess_in_a_unit_of_another_kind_is_refused(text: str, unit: str) -> None:
    assert "expected a number" in judged(text, 5.0, unit, 0.05, "is that")


def test_without_a_guess_there_is_no_answer() -> None:
    assert "guess first" in judged("  ", 5.0, "", 0.05, "is 5") and "is 5" not in judged(
        "  ", 5.0, "", 0.05, "is 5"
    )
    assert judged("<i>", 5.0, "", 0.05, "is 5").endswith("got &#x27;&lt;i&gt;&#x27;")
    assert judged("4", 5.0, "MiB", 0.05, "is 5") == "You said 4 MiB: it is 5"


def test_a_choice_is_told_in_whole_words() -> None:
    assert chosen("a<b", "a<b", "So.") == "Right: <b>“a&lt;b”</b>. So."
    assert chosen("they grow", "nothing", "So.").startswith("Not “they grow” but <b>“nothing”</b>")


def test_outside_a_notebook_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    predict("How many?", 3.0)
    choose("Which?", ["a", "b"], "a")
    turn(lambda rank, gpu: (go.Figure(), f"rank {rank}"), rank=slider(range(4), 2), gpu=menu(["T4"]))
    assert capsys.readouterr().out == ""


def test_a_wrong_start_or_answer_is_refused() -> None:
    with pytest.raises(InputError, match="answer must be one of a, b, got 'c'"):
        choose("Which?", ["a", "b"], "c")
    with pytest.raises(FlashSVDError, match="rank starts at 9"):
        turn(lambda rank: (go.Figure(), ""), rank=slider(range(4), 9))


def test_an_answer_is_folded_away_where_nothing_runs() -> None:
    page = framed("Predict", "How many?", "It is 3.")
    assert (
        page.index("How many?") < page.index("<details") < page.index("It is 3.") < page.index("</details>")
    )


def test_a_kernel_is_shown_as_it_ships() -> None:
    from flashsvd.kernels.norm import triton_kernel

    kernel = next(
        value
        for name, value in vars(triton_kernel).items()
        if name.endswith("kernel") and hasattr(value, "fn")
    )
    text = fenced(kernel)
    assert text.startswith("```python\n@triton.jit") and "flashsvd/kernels/norm/triton_kernel.py" in text
    assert fenced(framed, after="return").startswith("```python\nreturn (")
