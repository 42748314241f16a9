"""Where heads live in packed factors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.errors import InputError
from flashsvd.kernels import HeadLayout, Projection


@given(st.lists(st.integers(1, 128), min_size=1, max_size=16).map(tuple))
def test_heads_tile_p_and_u_without_gap_or_overlap(ranks: tuple[int, ...]) -> None:
    layout = HeadLayout(ranks)
    columns = [i for start, _, rank in layout.spans for i in range(start, start + rank)]
    rows = [i for _, start, rank in layout.spans for i in range(start, start + rank)]
    assert columns == list(range(layout.p_width))
    assert rows == list(range(layout.u_rows))
    assert (layout.heads, layout.max_rank) == (len(ranks), max(ranks))


def test_a_shared_layout_reads_the_same_columns() -> None:
    layout = HeadLayout((24,) * 3, shared=True)
    assert (layout.p_width, layout.u_rows) == (24, 72)
    assert layout.table().tolist() == [[0, 0, 24], [0, 24, 24], [0, 48, 24]]
    assert layout.table().dtype == torch.int32


@pytest.mark.parametrize("ranks, alignment", [((40, 8), 8), ((7, 16), 1), ((64, 32), 16), ((6, 4), 2)])
def test_alignment_divides_every_start_and_rank(ranks: tuple[int, ...], alignment: int) -> None:
    layout = HeadLayout(ranks)
    assert layout.alignment == alignment
    assert all(number % alignment == 0 for span in layout.spans for number in span)


@pytest.mark.parametrize(
    "ranks, shared", [((), False), ([4, 4], False), ((4, 0), False), ((4, 2.0), False), ((4, 5), True)]
)
def test_a_malformed_layout_is_refused(ranks: object, shared: bool) -> None:
    with pytest.raises(InputError) as error:
        HeadLayout(ranks, shared)
    assert "\n" not in str(error.value)


def test_head_parts_are_views() -> None:
    layout = HeadLayout((3, 5))
    proj = Projection(torch.zeros(1, 2, 8), torch.zeros(8, 4), torch.zeros(8), layout, None)
    p, u, bias = proj.head_parts(1, 4)
    assert (p.shape, u.shape, bias.shape) == ((1, 2, 5), (5, 4), (4,))
    assert p.untyped_storage().data_ptr() == proj.p.untyped_storage().data_ptr()
    assert u.untyped_storage().data_ptr() == proj.u.untyped_storage().data_ptr()
