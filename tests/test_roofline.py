"""Operations sum to what the benchmarks count, their FLOPs are torch's, and the least time is each product's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flashsvd.bench.counts import (
    Work,
    dense_layer,
    flash_layer,
    lowrank_layer,
    per_head_or_dense,
    rank_space_layer,
)
from flashsvd.bench.model_counts import head_work, step_layer
from flashsvd.engines.absorb import WHOLE_FACTOR
from flashsvd.engines.build import build
from flashsvd.factors import factorise
from flashsvd.methods import method_named
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import RankPlan
from flashsvd.roofline import (
    Ceiling,
    Op,
    Setting,
    forward_ops,
    step_ops,
    totals,
    whole,
)
from flashsvd.roofline.op import ATTENTION, DOWN, FEED_FORWARD, OUTPUT, QKV, UP
from flashsvd.roofline.streamed import _WHOLE_FACTOR
from flashsvd.spectra import compute
from tests.small_models import StatsModel, stats_folder, stats_model  # noqa: F401

B, S, E = 2, 10, 2
M = B * S
ROOF = Ceiling("toy", 1000.0, 10.0, "DATA SHEET")


def shape_of(*, per_head: bool = True, kv_heads: int = 2, gated: bool = False, layers: int = 2) -> ModelShape:
    """d 8, 2 heads of 4, D 16."""
    slots = (
        Slot("q", 8, 8, heads=2, per_head=per_head),
        Slot("k", 4 * kv_heads, 8, heads=kv_heads, per_head=per_head),
        Slot("v", 4 * kv_heads, 8, heads=kv_heads, per_head=per_head),
        Slot("o", 8, 8),
        *((Slot("gate", 16, 8),) if gated else ()),
        Slot("up", 16, 8),
        Slot("down", 8, 16),
    )
    return ModelShape("toy", 8, 2, kv_heads, 4, 64, (slots,) * layers)


def summed(ops: list[Op]) -> Work:
    return Work(
        sum(op.flops for op in ops),
        sum(op.weight_bytes for op in ops),
        sum(op.activation_bytes for op in ops),
    )


def test_bytes_of_each_dense_operation_by_hand() -> None:
    plan = RankPlan.dense(shape_of(layers=1))
    found = {op.name: op for op in forward_ops(plan, "dense", Setting(B, S, E))}
    assert list(found) == [QKV, ATTENTION, OUTPUT, UP, DOWN]
    assert found[QKV] == Op(0, QKV, 2 * M * 8 * 24, E * 8 * 24, E * M * (8 + 24), (QKV,))
    assert found[ATTENTION] == Op(0, ATTENTION, 4 * B * S * S * 8, 0, E * M * (24 + 8), (ATTENTION,))
    assert found[OUTPUT].bytes == E * (64 + M * (8 + 8))
    assert found[UP].bytes == E * (128 + M * (8 + 16)) and found[DOWN].bytes == E * (128 + M * (16 + 8))


def test_bytes_of_factored_operations_by_hand() -> None:
    plan = RankPlan(shape_of(layers=1), (((1, 2), (2, 1), (1, 1), (3,), (5,), (4,)),))
    lowrank = {op.name: op for op in totals_of(forward_ops(plan, "lowrank", Setting(B, S, E)))}
    # P of 3 + 3 + 2 columns goes out and comes back.
    assert lowrank[QKV].bytes == E * (8 * 8 + 8 * 4 + M * (8 + 8 + 8 + 24))
    assert lowrank[UP].bytes == E * (5 * 8 + 5 * 16 + M * (8 + 5 + 5 + 16))
    flash = {op.name: op for op in totals_of(forward_ops(plan, "flash", Setting(B, S, E)))}
    assert flash[QKV].bytes == E * (8 * 8 + M * (8 + 8))
    assert flash[ATTENTION].bytes == E * (8 * 4 + M * (8 + 8))
    assert flash[ATTENTION].flops == 4 * B * S * S * 8 + 2 * M * 8 * 4
    # x, P1 out and in, P2 out and in, y: nothing 16 wide.
    assert flash[FEED_FORWARD].bytes == E * (5 * 24 + 4 * 24 + M * (8 + 2 * 5 + 2 * 4 + 8))
    assert flash[FEED_FORWARD].covers == (UP, DOWN)


def totals_of(ops: list[Op]) -> list[Any]:
    return list(totals(ops, ROOF))


ranks = st.one_of(st.none(), st.integers(1, 8))


@st.composite
def plans(draw: st.DrawFn) -> RankPlan:
    shape = shape_of(
        per_head=draw(st.booleans()), kv_heads=draw(st.sampled_from((1, 2))), gated=draw(st.booleans())
    )
    rows = tuple(
        tuple(
            tuple(
                draw(ranks.filter(lambda r, top=slot.full_rank: r is None or r <= top))
                for _ in range(slot.units)
            )
            for slot in slots
        )
        for slots in shape.layers
    )
    return RankPlan(shape, rows)


@given(plans(), st.integers(1, 3), st.integers(1, 9), st.booleans(), st.sampled_from((None, 2)))
def test_operations_sum_to_what_benchmarks_count(
    plan: RankPlan, batch: int, seq: int, causal: bool, window: int | None
) -> None:
    layers = range(len(plan.shape.layers))
    setting = Setting(batch, seq, E, causal=causal, window=lambda layer: window)
    dense = sum((dense_layer(plan.shape, i, batch, seq, E, causal=causal) for i in layers), Work())
    assert summed(forward_ops(plan, "dense", setting)) == dense
    lowrank = sum((lowrank_layer(plan, i, batch, seq, E, causal=causal) for i in layers), Work())
    assert summed(forward_ops(plan, "lowrank", setting)) == lowrank
    step = sum((step_layer(plan, i, batch, seq, E, window=window) for i in layers), Work())
    assert summed(step_ops(plan, "lowrank", setting)) == step
    for absorbing in (False, True):
        flash = Work()
        for i in layers:
            count = rank_space_layer if absorbing and per_head_or_dense(plan, i) else flash_layer
            flash += count(plan, i, batch, seq, E, window=window, causal=causal)
        assert summed(forward_ops(plan, "flash", replace(setting, absorbing=absorbing))) == flash


def test_the_head_is_one_product_of_the_last_token() -> None:
    plan = RankPlan.dense(shape_of())
    setting = Setting(B, S, E, causal=True, vocabulary=90)
    head = forward_ops(plan, "dense", setting)[-1]
    assert Work(head.flops, head.weight_bytes, 0) == head_work(90, 8, B, E)
    assert step_ops(plan, "dense", setting)[-1] == head


def test_folding_the_output_follows_the_engine() -> None:
    assert _WHOLE_FACTOR == WHOLE_FACTOR


@pytest.mark.parametrize("engine", ["dense", "lowrank"])
@pytest.mark.parametrize("per_head", [True, False])
def test_flops_are_those_that_torch_counts(
    stats_model: StatsModel,  # noqa: F811
    engine: str,
    per_head: bool,
) -> None:
    loaded = stats_model("bert", per_head=per_head)
    plan = RankPlan.build(loaded.shape, lambda layer, slot, unit: 2 + (layer + unit) % 3)
    batch, seq = 3, 12
    spectra = compute(loaded, method_named("svd"), None)
    model = build(loaded, engine, factorise(loaded, spectra, plan), plan).base_model
    counter = FlopCounterMode(display=False)
    ids = torch.randint(90, (batch, seq), generator=torch.Generator().manual_seed(0))
    # The plain formula: torch has no count for the CPU's fused attention.
    with counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        model(ids)
    pooler = 2 * batch * 32 * 32
    mine = sum(op.flops for op in forward_ops(plan, engine, Setting(batch, seq, 8)))  # type: ignore[arg-type]
    assert mine == counter.get_total_flops() - pooler


def test_the_least_time_is_each_products_own() -> None:
    ops = [Op(0, UP, 2000, 10, 0, (UP,)), Op(0, UP, 10, 50, 0, (UP,)), Op(1, UP, 10, 50, 0, (UP,))]
    found = whole(ops, ROOF)
    assert found.seconds == pytest.approx(2 + 5 + 5) and found.memory_seconds == pytest.approx(10)
    assert found.bound == "memory" and found.memory_share == pytest.approx(10 / 12)
    assert whole(ops[:1], ROOF).bound == "compute"
    # The time of the sums would hide that the first product computes and the others move.
    assert ROOF.seconds(found.flops, found.bytes) < found.seconds
    assert totals(ops, ROOF)[0].layers == 2


@given(st.floats(0.1, 1e4))
def test_the_roof_bends_at_the_ridge(intensity: float) -> None:
    expected = 1000.0 if intensity >= ROOF.ridge else 10.0 * intensity
    assert ROOF.attainable(intensity) == pytest.approx(expected)
