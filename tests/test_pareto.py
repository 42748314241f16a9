"""The front is what no other point beats, in any order of the points."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flashsvd.pareto import front

points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30)


def beaten(point: tuple[int, int], others: list[tuple[int, int]]) -> bool:
    return any(x <= point[0] and y >= point[1] and (x, y) != point for x, y in others)


@given(points)
def test_the_front_is_what_nothing_beats(found: list[tuple[int, int]]) -> None:
    on = [found[index] for index in front([x for x, _ in found], [y for _, y in found])]
    assert set(on) == {point for point in found if not beaten(point, found)}
    assert on == sorted(set(on)), "cheapest first, of equal points one"


@given(points)
def test_lower_is_better_turns_it_over(found: list[tuple[int, int]]) -> None:
    x, y = [x for x, _ in found], [y for _, y in found]
    assert front(x, y, lower_is_better=True) == front(x, [-value for value in y])


def test_equal_scores_keep_the_cheaper_point() -> None:
    assert front([2, 1, 3], [0.5, 0.5, 0.5]) == [1]
    assert front([], []) == []
