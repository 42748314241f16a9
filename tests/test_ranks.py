import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.allocate import LADDER, by_role, energy, ladder, tail_energy, uniform
from flashsvd.errors import PlanError
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import RankPlan, rank_for_keep, snap

BERT_BASE_LAYER = (
    Slot("q", 768, 768, heads=12),
    Slot("k", 768, 768, heads=12),
    Slot("v", 768, 768, heads=12),
    Slot("o", 768, 768),
    Slot("up", 3072, 768),
    Slot("down", 768, 3072),
)
BERT_BASE = ModelShape("bert", 768, 12, 12, 64, 512, (BERT_BASE_LAYER,) * 12)
SMALL = ModelShape(
    "bert",
    32,
    2,
    2,
    16,
    64,
    (
        (
            Slot("q", 32, 32, heads=2),
            Slot("k", 32, 32, heads=2),
            Slot("v", 32, 32, heads=2),
            Slot("o", 32, 32),
            Slot("up", 64, 32),
            Slot("down", 32, 64),
        ),
    )
    * 3,
)


@st.composite
def plans(draw: st.DrawFn) -> RankPlan:
    """Any plan for SMALL, snapped as every builder snaps."""
    per_head = draw(st.booleans())
    shape = SMALL.with_per_head(per_head)

    def row(slot: Slot) -> tuple[int | None, ...]:
        ranks = st.one_of(st.none(), st.integers(1, slot.full_rank))
        return tuple(draw(ranks) for _ in range(slot.units))

    rows = tuple(tuple(tuple(snap(slot, r) for r in row(slot)) for slot in slots) for slots in shape.layers)
    return RankPlan(shape, rows)


@given(plans())
def test_text_and_json_round_trip(plan: RankPlan) -> None:
    assert RankPlan.from_text(plan.shape, plan.to_text()) == plan
    assert RankPlan.from_json(plan.to_json()) == plan


@given(plans())
def test_counts_follow_the_formula_and_never_exceed_dense(plan: RankPlan) -> None:
    expected = 0
    for layer, slot in plan.shape:
        for rank in plan.get(layer, slot.name):
            m, n = slot.out_features // slot.units, slot.in_features
            expected += m * n if rank is None else rank * (m + n)
    assert plan.kept_parameters == expected
    assert plan.kept_parameters <= plan.shape.dense_parameters
    assert plan.keep <= 1


@given(plans(), plans())
def test_equal_plans_share_a_digest_and_others_do_not(one: RankPlan, other: RankPlan) -> None:
    assert (one.digest == other.digest) == (one == other)
    assert len({one, RankPlan.from_json(one.to_json())}) == 1


@given(st.floats(0.01, 1.0))
def test_uniform_keeps_at_most_what_was_asked(keep: float) -> None:
    plan = uniform(BERT_BASE, keep)
    assert plan.keep <= keep or min(r for r in plan.get(0, "q") if r) == 1


def test_break_even_of_a_bert_base_head() -> None:
    assert BERT_BASE_LAYER[0].break_even == pytest.approx(59.08, abs=0.01)
    assert snap(BERT_BASE_LAYER[0], 59) == 59
    assert snap(BERT_BASE_LAYER[0], 60) is None


def test_keep_one_is_dense_everywhere() -> None:
    assert uniform(BERT_BASE, 1.0) == RankPlan.dense(BERT_BASE)
    assert rank_for_keep(BERT_BASE_LAYER[4], 0.5) == 307


def test_full_rank_per_head_costs_more_than_dense() -> None:
    assert RankPlan.full_rank(BERT_BASE).kept_parameters > BERT_BASE.dense_parameters


def test_the_ladder_is_the_published_one_on_bert_base() -> None:
    half = LADDER[3]
    assert ladder(BERT_BASE, half) == by_role(BERT_BASE, 40, 240, 240)
    assert ladder(BERT_BASE, half).keep == pytest.approx(0.48, abs=0.01)
    keeps = [ladder(BERT_BASE, rung).keep for rung in LADDER]
    assert keeps == sorted(keeps, reverse=True)


def test_energy_takes_the_smallest_rank_that_holds_the_share() -> None:
    import numpy as np

    sigma = np.array([[2.0, 1.0, 1.0] + [0.0] * 29])
    sigmas = {
        (layer, slot.name): np.repeat(sigma[:, : slot.full_rank], slot.units, 0) for layer, slot in SMALL
    }
    assert energy(SMALL, sigmas, 0.6).get(0, "o") == (1,)
    assert energy(SMALL, sigmas, 0.7).get(0, "o") == (2,)
    assert tail_energy(energy(SMALL, sigmas, 0.7), sigmas) == pytest.approx(1 / 6)
    assert tail_energy(RankPlan.dense(SMALL), sigmas) == 0


def test_a_replaced_row_snaps_and_leaves_the_rest() -> None:
    plan = uniform(BERT_BASE, 0.5)
    changed = plan.replace(3, "q", (60,) + (7,) * 11)
    assert changed.get(3, "q") == (None,) + (7,) * 11
    assert changed.replace(3, "q", plan.get(3, "q")) == plan


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("*.q: 0", "rank must be from 1 to 64"),
        ("*.q: 65", "rank must be from 1 to 64"),
        ("L13.q: 4", "L1 to L12"),
        ("L1.gate: 4", "no projection 'gate'"),
        ("L1.q.h13: 4", "h1 to h12"),
        ("L1.o.h1: 4", "no heads"),
        ("q=4", "cannot read 'q=4'"),
        ("*.q: 4x", "cannot read"),
        ("L0.q: 4", "L1 to L12"),
        ("L5-4.q: 4", "L1 to L12"),
    ],
)
def test_a_bad_rule_is_named_in_one_line(text: str, words: str) -> None:
    with pytest.raises(PlanError) as error:
        RankPlan.from_text(BERT_BASE, text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_later_rules_win() -> None:
    plan = RankPlan.from_text(BERT_BASE, "*.qkv: 32, L5-7.q.h6-9: 16; L1.*: dense")
    assert plan.get(4, "q") == (32,) * 5 + (16,) * 4 + (32,) * 3
    assert plan.get(0, "v") == (None,) * 12


def test_a_plan_for_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="another model: it has 3 bert layers"):
        uniform(SMALL, 0.5).check_fits(BERT_BASE)
    uniform(BERT_BASE.with_per_head(False), 0.5).check_fits(BERT_BASE)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "[]",
        "{}",
        '{"format": "flashsvd-plan/1"}',
        '{"format": "flashsvd-plan/1", "shape": 3, "layers": []}',
        "{" * 90,
    ],
)
def test_json_that_is_no_plan_is_one_line(data: str) -> None:
    with pytest.raises(PlanError) as error:
        RankPlan.from_json(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rank", [0, 33, -1, 2.5, "4", True])
def test_json_ranks_are_checked(rank: object) -> None:
    data = uniform(SMALL, 0.5).to_json()
    data["layers"][1]["o"] = [rank]
    with pytest.raises(PlanError, match=r"L2\.o"):
        RankPlan.from_json(data)


@pytest.mark.parametrize("keep", [0, -1, 1.01, float("nan")])
def test_keep_outside_its_range_is_refused(keep: float) -> None:
    with pytest.raises(PlanError, match="keep must be"):
        uniform(SMALL, keep)
