"""Which of ALinear and BLinear comes first follows from the shapes, whatever they are."""

from pathlib import Path

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from flashsvd.checkpoints.base import Source
from flashsvd.checkpoints.two_linears import order

_size = st.integers(1, 12)


@st.composite
def _pairs(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """(out, in, rank) of some linears, of ranks that two factors can have."""
    sizes = draw(st.lists(st.tuples(_size, _size), min_size=1, max_size=5))
    return [(m, n, draw(st.integers(1, min(m, n)))) for m, n in sizes]


def _source(pairs: list[tuple[int, int, int]], u: str, v: str) -> Source:
    tensors = {}
    for index, (m, n, k) in enumerate(pairs):
        tensors[f"x.{index}.{u}.weight"] = torch.empty(m, k)
        tensors[f"x.{index}.{v}.weight"] = torch.empty(k, n)
    return Source(Path("x"), tensors)


@given(_pairs())
def test_one_pair_that_is_not_square_settles_all(pairs: list[tuple[int, int, int]]) -> None:
    assume(any(len({m, n, k}) > 1 for m, n, k in pairs))
    assert order(_source(pairs, "ALinear", "BLinear")) == "asvd"
    assert order(_source(pairs, "BLinear", "ALinear")) == "dobi"


@given(_pairs())
def test_a_rule_without_ranks_would_not_do(pairs: list[tuple[int, int, int]]) -> None:
    """Multiplying in either order is possible for any square matrix: that alone tells nothing."""
    for m, n, k in pairs:
        a, b = torch.empty(m, k), torch.empty(k, n)
        both = a.shape[1] == b.shape[0] and b.shape[1] == a.shape[0]
        assert both is (m == n)


def test_a_file_without_pairs_has_no_order() -> None:
    assert order(Source(Path("x"), {"x.weight": torch.empty(2, 2)})) is None
