"""Edits of a plan: made all at once, checked, and the same in both directions."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.allocate import uniform
from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.plan_edits import Edit, apply_edits, edits_between, padded, read_edits, step_rank, tile_of
from flashsvd.ranks import RankPlan
from tests.app import fakes

SHAPE = fakes.bert_shape(2, 256, 4, 64)
SHARED = SHAPE.with_per_head(False).with_sharing(2, ("q", "k"))


@st.composite
def plans(draw: st.DrawFn, shape: ModelShape = SHAPE) -> RankPlan:
    def rank(layer: int, slot: Slot, unit: int) -> int | None:
        return draw(st.one_of(st.none(), st.integers(1, slot.full_rank)))

    return RankPlan.build(shape, rank)


@given(plans(), plans())
def test_the_edits_between_two_plans_lead_from_one_to_the_other(before: RankPlan, after: RankPlan) -> None:
    edits = edits_between(before, after)
    assert apply_edits(before, edits) == after
    wire = [[e.layer, e.slot, e.first, e.last, e.rank] for e in edits]
    assert read_edits(SHAPE, wire) == edits


@given(plans())
def test_a_plan_is_not_edited_into_itself(plan: RankPlan) -> None:
    assert edits_between(plan, plan) == () and apply_edits(plan, ()) == plan


def test_a_row_of_equal_ranks_is_one_edit_and_a_later_edit_wins() -> None:
    plan = uniform(SHAPE, 0.5)
    edits = (Edit(1, "q", 0, 3, 16), Edit(1, "q", 2, 2, None))
    edited = apply_edits(plan, edits)
    assert edited.get(1, "q") == (16, 16, None, 16) and edited.get(0, "q") == plan.get(0, "q")
    assert edits_between(plan, apply_edits(plan, edits[:1])) == edits[:1]


def test_ranks_from_break_even_on_stay_dense() -> None:
    assert apply_edits(uniform(SHAPE, 0.5), [Edit(0, "k", 1, 1, 60)]).get(0, "k") == (25, None, 25, 25)


def test_layers_that_share_a_factor_change_together() -> None:
    edited = apply_edits(uniform(SHARED, 0.5), [Edit(1, "q", 0, 0, 48)])
    assert edited.get(0, "q") == edited.get(1, "q") == (48,)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "must be a list"),
        ({}, "must be a list"),
        ("[]", "must be a list"),
        ([1], "an edit is"),
        ([[0, "q", 0, 0]], "an edit is"),
        ([[0, 1, 0, 0, 8]], "an edit is"),
        ([[0.5, "q", 0, 0, 8]], "whole numbers"),
        ([[True, "q", 0, 0, 8]], "whole numbers"),
        ([[0, "q", "0", 0, 8]], "whole numbers"),
        ([[9, "q", 0, 0, 8]], "does not exist"),
        ([[-1, "q", 0, 0, 8]], "does not exist"),
        ([[0, "gate", 0, 0, 8]], "no projection 'gate'"),
        ([[0, "x" * 10_000, 0, 0, 8]], "no projection"),
        ([[0, "q", 0, 4, 8]], "units 1 to 4"),
        ([[0, "q", 2, 1, 8]], "units 1 to 4"),
        ([[0, "q", -1, 1, 8]], "units 1 to 4"),
        ([[0, "q", 0, 0, 0]], "rank must be from 1 to 64"),
        ([[0, "q", 0, 0, 65]], "rank must be from 1 to 64"),
        ([[0, "q", 0, 0, float("nan")]], "whole numbers"),
        ([[0, "q", 0, 0, "dense"]], "whole numbers"),
        ([[0, "q", 0, 0, 8]] * 100_001, "at most 100000"),
    ],
)
def test_nonsense_is_one_line(data: object, words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        read_edits(SHAPE, data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8)
)
def test_anything_that_json_can_hold_is_read_or_a_plan_error(data: object) -> None:
    try:
        edits = read_edits(SHAPE, data)
    except PlanError:
        return
    apply_edits(uniform(SHAPE, 0.5), edits)


@given(st.integers(2, 512), st.integers(2, 512), st.integers(1, 512), st.integers(-40, 40))
def test_steps_end_on_tiles_within_the_slot(out: int, into: int, rank: int, steps: int) -> None:
    slot = Slot("o", out, into)
    rank = min(rank, slot.full_rank)
    new = step_rank(slot, rank, steps)
    if steps == 0:
        assert new == rank
    elif new is not None:
        assert new == 1 or new % tile_of(slot) == 0
        assert 1 <= new < max(slot.break_even, rank + 1)
    assert step_rank(slot, None, 1) is None
    assert 2 * tile_of(slot) < slot.break_even or tile_of(slot) == 1


def test_padding_is_to_the_next_tile() -> None:
    assert [padded(rank) for rank in (1, 15, 16, 17, 48)] == [16, 16, 16, 32, 48]


def test_plans_of_different_shapes_have_no_edits_between() -> None:
    other = dataclasses.replace(SHAPE, heads=8)
    with pytest.raises(PlanError, match="different shapes"):
        edits_between(uniform(SHAPE, 0.5), uniform(other, 0.5))
