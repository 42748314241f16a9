"""Where two texts part, which tokens differ, and how far apart two models are place by place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.errors import InputError, NonFiniteError
from flashsvd.generation import agreement
from flashsvd.generation.agreement import (
    common_prefix,
    differing,
    log_softmax,
    next_tokens,
    parting,
    ranked,
    total_variation,
)
from flashsvd.measure.divergence import divergence

TOKENS = st.lists(st.integers(0, 4), max_size=24)


def kept(tokens: Sequence[int], marks: Sequence[bool]) -> list[int]:
    return [token for token, mark in zip(tokens, marks, strict=True) if not mark]


def holds(
    found: Callable[[list[int], list[int]], tuple[Sequence[bool], Sequence[bool]]], a: list[int], b: list[int]
) -> bool:
    """What any marking has to fulfil."""
    first, second = found(a, b)
    shared = common_prefix(a, b)
    return (
        kept(a, first) == kept(b, second)
        and not any(first[:shared])
        and not any(second[:shared])
        and (any(first) or any(second)) == (a != b)
    )


@given(TOKENS, TOKENS)
def test_what_is_unmarked_is_the_same_in_both(a: list[int], b: list[int]) -> None:
    assert holds(differing, a, b)


@given(TOKENS, st.integers(0, 24), TOKENS)
def test_a_token_put_in_marks_itself_alone(a: list[int], at: int, rest: list[int]) -> None:
    longer = [*a[:at], 9, *a[at:]]
    first, second = differing(a, longer)
    assert not any(first) and sum(second) == 1 and longer[second.index(True)] == 9


def test_markings_that_forget_something_are_caught() -> None:
    def by_place(a: list[int], b: list[int]) -> tuple[list[bool], list[bool]]:
        marks = [x != y for x, y in zip(a, b, strict=False)]
        return marks + [False] * (len(a) - len(marks)), marks + [False] * (len(b) - len(marks))

    def everything_after(a: list[int], b: list[int]) -> tuple[list[bool], list[bool]]:
        return [False] * 1 + [True] * (len(a) - 1), [False] + [True] * (len(b) - 1)

    assert not holds(by_place, [1, 2, 3], [1, 2])
    assert not holds(everything_after, [1, 2, 3], [1, 2, 4])


@given(TOKENS, TOKENS)
def test_the_place_where_they_part(a: list[int], b: list[int]) -> None:
    place = parting(a, b)
    if place is None:
        assert a == b
    else:
        assert a[:place] == b[:place] and a[place : place + 1] != b[place : place + 1]


def test_frequent_tokens_of_long_texts_are_matched() -> None:
    long = [1, 2] * 150
    first, second = differing([7, *long], [8, *long])
    assert sum(first) == sum(second) == 1


def logits(seed: int, places: int = 6, vocabulary: int = 11) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(places, vocabulary)).astype(np.float32) * 3


@given(st.integers(0, 10_000))
def test_divergence_place_by_place_is_that_of_the_scores(seed: int) -> None:
    dense, mine = logits(seed), logits(seed + 1)
    found = next_tokens(dense, mine)
    p, q = (torch.log_softmax(torch.from_numpy(values).double(), -1) for values in (dense, mine))
    expected = divergence([p], [q])
    assert [place.kl for place in found] == pytest.approx(expected.kl.tolist(), abs=1e-9)
    assert [place.agrees for place in found] == expected.agrees.tolist()


def test_divergence_the_other_way_round_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, mine = logits(0), logits(1)
    right = [place.kl for place in next_tokens(dense, mine)]
    wrong = [place.kl for place in next_tokens(mine, dense)]
    assert right != pytest.approx(wrong, abs=1e-3)

    def in_bits(values: np.ndarray) -> np.ndarray:
        return log_softmax(values) / np.log(2)

    monkeypatch.setattr(agreement, "log_softmax", in_bits)
    assert [place.kl for place in next_tokens(dense, mine)] != pytest.approx(right, abs=1e-3)


@given(st.integers(0, 10_000), st.floats(-1e4, 1e4))
def test_a_shift_of_all_logits_changes_nothing_and_a_model_is_at_no_distance_from_itself(
    seed: int, shift: float
) -> None:
    dense = logits(seed).astype(np.float64)
    for place in next_tokens(dense, dense + shift):
        assert place.agrees and place.kl == pytest.approx(0, abs=1e-9) and place.kl >= 0
    assert all(place.kl > 0 for place in next_tokens(dense, logits(seed + 1).astype(np.float64)))


@given(st.integers(0, 10_000), st.integers(1, 15))
def test_the_likeliest_tokens_come_first(seed: int, top: int) -> None:
    (place,) = next_tokens(logits(seed, 1), logits(seed + 1, 1), top)
    for side, values in ((place.dense, logits(seed, 1)[0]), (place.compressed, logits(seed + 1, 1)[0])):
        shares = [share for _, share in side]
        assert len(side) == min(top, 11) and shares == sorted(shares, reverse=True)
        assert side[0][0] == values.argmax() and sum(shares) <= 1 + 1e-9
    if top >= 11:
        assert sum(share for _, share in place.dense) == pytest.approx(1)


def test_equal_tokens_are_in_order_of_their_ids() -> None:
    assert [token for token, _ in ranked(np.log(np.full(4, 0.25)), 3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("dense", "mine", "top", "error", "words"),
    [
        (logits(0), logits(0, 5), 3, InputError, r"of one shape, got \[6, 11\] and \[5, 11\]"),
        (logits(0)[0], logits(0)[0], 3, InputError, r"got \[11\] and \[11\]"),
        (logits(0), logits(0), 0, InputError, "top must be at least 1, got 0"),
        (logits(0), logits(0) * np.nan, 3, NonFiniteError, "not finite: use fp32"),
        (logits(0) * np.inf, logits(0), 3, NonFiniteError, "not finite: use fp32"),
    ],
)
def test_bad_logits_are_one_line(
    dense: np.ndarray, mine: np.ndarray, top: int, error: type[Exception], words: str
) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(error, match=words):
        next_tokens(dense, mine, top)


@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=8), st.lists(st.floats(0.01, 1), min_size=2, max_size=8)
)
def test_total_variation_is_a_distance_from_0_to_1(first: list[float], second: list[float]) -> None:
    size = min(len(first), len(second))
    p, q = ([value / sum(values[:size]) for value in values[:size]] for values in (first, second))
    assert 0 <= total_variation(p, q) <= 1 + 1e-9
    assert total_variation(p, q) == pytest.approx(total_variation(q, p))
    assert total_variation(p, p) == 0 and total_variation([1.0, 0.0], [0.0, 1.0]) == 1
