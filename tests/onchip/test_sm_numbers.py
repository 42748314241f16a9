"""The numbers of traces whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.onchip import sm_numbers as module
from flashsvd.onchip.sm_numbers import busy_over_time, covered, frame, lanes, most_at_once, numbers, verdict
from tests.onchip.sm_samples import of, trace

HAND = [
    # Two at once on 0, one after another on 1, a short one on 2, nothing on 3.
    (0, 0, 100),
    (0, 20, 80),
    (1, 0, 40),
    (1, 40, 100),
    (2, 10, 30),
    (0, 80, 160),
]


def test_by_hand() -> None:
    found = numbers(of(HAND, sm_count=4))
    assert (found.programs, found.sm_count, found.used) == (6, 4, 3)
    assert (found.least, found.median, found.most) == (0, 1.5, 3)
    assert found.makespan_ns == 160
    assert found.busy == pytest.approx((160 + 100 + 20) / (4 * 160))
    assert found.tail_ns == 160 - 30
    assert found.seen == 2 and found.seen_on == pytest.approx(1 / 3)
    assert found.program_ns == 60


def test_a_program_that_follows_at_once_does_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(0, 0, 40), (0, 40, 80), (0, 80, 120)]
    assert numbers(of(rows)).seen == 1
    # Planted: starts before ends.
    real = np.lexsort
    monkeypatch.setattr(module.np, "lexsort", lambda keys: real((-keys[0], *keys[1:])))
    assert most_at_once(np.array([0, 40]), np.array([40, 80])) == 2


def test_a_program_within_a_step_of_the_timer_counts() -> None:
    found = numbers(of([(0, 0, 0), (1, 0, 0)]))
    assert found.seen == 1 and found.makespan_ns == 0 and found.busy == 1.0 and found.tail_ns == 0


def test_gaps_are_not_busy() -> None:
    assert covered(np.array([0, 50]), np.array([10, 60])) == 20
    assert covered(np.array([0, 5, 50]), np.array([100, 10, 60])) == 100
    assert covered(np.array([], np.int64), np.array([], np.int64)) == 0


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_full_gpu_shows_what_was_predicted(at_once: int) -> None:
    made = trace(4 * 132 * at_once, at_once=at_once)
    found = numbers(made)
    assert verdict(made, found) == ("as predicted", at_once)
    assert found.seen_on == 1.0 and 0.9 < found.busy <= 1 and 0 < found.tail_ns < found.makespan_ns / 3


def test_too_few_programs_are_told_from_a_wrong_prediction() -> None:
    few = trace(256, at_once=3)
    assert verdict(few, numbers(few)) == ("too few programs", 3)
    rows = [(sm, turn * 100, turn * 100 + 90) for turn in range(6) for sm in range(132)]
    alone = of(rows, at_once=3)
    assert verdict(alone, numbers(alone)) == ("fewer than predicted", 3)
    more = of([(0, 0, 100), (0, 10, 90)], at_once=1)
    assert verdict(more, numbers(more)) == ("more than predicted", 1)


rows_of = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 50), st.integers(0, 20)).map(
        lambda r: (r[0], r[1], r[1] + r[2])
    ),
    min_size=1,
    max_size=40,
)


@given(rows_of)
def test_lanes_hold_one_program_at_a_time(rows: list[tuple[int, int, int]]) -> None:
    made = of(rows, sm_count=4)
    lane, turn = lanes(made)
    assert lane.max() + 1 >= numbers(made).seen
    if (made.end_ns > made.start_ns).all():
        assert lane.max() + 1 == numbers(made).seen
    for sm in range(4):
        for place in range(int(lane.max()) + 1):
            mine = np.flatnonzero((made.sm == sm) & (lane == place))
            order = mine[np.argsort(turn[mine])]
            assert turn[order].tolist() == list(range(len(order)))
            assert (made.end_ns[order][:-1] <= made.start_ns[order][1:]).all()


@given(rows_of)
def test_resident_programs_add_up(rows: list[tuple[int, int, int]]) -> None:
    made = of(rows, sm_count=4)
    at, resident = busy_over_time(made, 7)
    width = max(int(made.end_ns.max()), 1) / 7
    assert len(at) == 7 and (resident > -1e-9).all()
    assert (resident * width).sum() == pytest.approx((made.end_ns - made.start_ns).sum())


@given(rows_of)
def test_numbers_are_within_their_bounds(rows: list[tuple[int, int, int]]) -> None:
    found = numbers(of(rows, sm_count=4))
    assert 0 <= found.busy <= 1 and 0 <= found.tail_ns <= found.makespan_ns + 50
    assert found.least <= found.median <= found.most and 1 <= found.seen <= found.most


def test_a_table_has_a_row_a_program() -> None:
    found = frame(of(HAND, sm_count=4))
    assert found["duration_ns"].tolist() == [100, 60, 40, 60, 20, 80]
    assert found["place"].tolist() == [0, 1, 0, 0, 0, 1] and found["turn"].tolist() == [0, 0, 0, 1, 0, 1]
