"""The line that says whether a reader's result is right, or which mistake it is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.teaching.checks import ALIKE, WITHIN, attempted, verdict

NUMBERS = st.floats(0.01, 1e6)


def judged(
    mine: object, reference: object, mistakes: dict[str, object] | None = None, within: float = WITHIN
) -> str:
    return str(verdict("it", mine, reference, within=within, mistakes=mistakes or {}))


@given(NUMBERS, st.floats(-0.5, 0.5))
def test_a_number_is_right_within_the_tolerance_and_not_beyond(reference: float, off: float) -> None:
    said = judged(reference * (1 + off), reference, within=0.1)
    assert said[0] == ("✓" if abs(off) <= 0.1 - 1e-9 else "✗" if abs(off) >= 0.1 + 1e-9 else said[0])


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.data())
def test_one_wrong_value_of_several_is_seen(values: list[float], data: st.DataObject) -> None:
    assert judged(list(values), values)[0] == "✓"
    place = data.draw(st.integers(0, len(values) - 1))
    wrong = [value * (1.01 if i == place else 1) for i, value in enumerate(values)]
    assert judged(wrong, values)[0] == "✗"
    assert judged(torch.tensor(wrong).double(), torch.tensor(values).double() / 1.1)[0] == "✗"


def test_a_tensor_off_at_one_place_is_told_where() -> None:
    reference = torch.arange(12.0).reshape(3, 4)
    mine = reference.clone()
    assert judged(mine, reference) == "✓ it: equal"
    mine[1, 2] = 7
    assert (
        judged(mine, reference)
        == "✗ it: off by 9.1e-02 of the largest value; most at [1, 2], where 7 should be 6"
    )
    mine[1, 2] = math.nan
    assert judged(mine, reference) == "✗ it: 1 of 12 values are NaN"
    mine[1, 2] = 6 + WITHIN * 11 / 2
    assert judged(mine, reference).startswith("✓ it: within 5.0e-05")


def test_infinities_must_stand_where_they_belong() -> None:
    reference = torch.tensor([1.0, -math.inf])
    assert judged(torch.tensor([1.0, -math.inf]), reference)[0] == "✓"
    assert judged(torch.tensor([1.0, 0.0]), reference)[0] == "✗"
    assert judged(torch.tensor([math.nan, -math.inf]), reference)[0] == "✗"


@pytest.mark.parametrize(
    ("mine", "reference", "said"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), "expected shape (3, 2), got (2, 3)"),
        (3.0, torch.zeros(2), "expected a tensor (2,), got float 3.0"),
        ("four", 4.0, "expected a number, got str 'four'"),
        (True, 1.0, "expected a number, got bool True"),
        ([1.0], [1.0, 2.0], "expected 2 values, got list [1.0]"),
        (3, 4, "got 3, expected something else"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(mine: object, reference: object, said: str) -> None:
    assert judged(mine, reference) == f"✗ it: {said}"


def test_of_several_values_the_worst_is_told_in_one_line() -> None:
    x = torch.arange(400.0).reshape(20, 20)
    assert judged([x, x + 399], [x, x]) == (
        "✗ it: value 2 of 2: off by 1.0e+00 of the largest value; most at [0, 0], where 399 should be 0"
    )
    assert judged([1, 5, 3], [1, 2, 3]) == "✗ it: value 2 of 3: got 5, expected something else"
    assert judged([2.0, 1.5], [2.0, 1.0]) == "✗ it: value 2 of 2: got 1.5, off by 50.0%"
    assert "\n" not in judged([x], [x, x]) and "\n" not in judged([[x], x], [x, x])


def test_a_mistake_is_named_where_its_value_comes_out() -> None:
    x = torch.randn(4, 4)
    mistakes = {"the scale is missing": x * 8, "transposed": x.T.contiguous()[:, :3]}
    assert judged(x * 8 * (1 + ALIKE / 3), x, mistakes) == "✗ it: the scale is missing"
    assert judged(x.T[:, :3], x, mistakes) == "✗ it: transposed"
    assert "off by" in judged(x * 7, x, mistakes)
    assert judged(x, x, {"never": x}) == "✓ it: equal"


def test_a_stub_is_not_written_and_an_exception_is_one_line() -> None:
    def attempt(call: object) -> str:
        return str(attempted("it", call, 2.0, within=WITHIN, mistakes={}))  # type: ignore[arg-type]

    def unwritten() -> None:
        raise NotImplementedError

    def broken() -> None:
        raise KeyError("a\nb")

    assert attempt(lambda: ...) == attempt(lambda: None) == attempt(unwritten) == "○ it: not written yet"
    assert attempt(lambda: [1.0, None]) == "○ it: not written yet"
    assert attempt(broken) == "✗ it: your code raised KeyError: 'a\\nb'"
    assert attempt(lambda: 2) == "✓ it: equal"
