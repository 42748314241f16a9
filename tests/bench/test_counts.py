"""Counts against numbers worked out by hand, and FLOPs against what torch counts on a real model."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flashsvd.allocate import by_role
from flashsvd.bench.counts import (
    Work,
    dense_layer,
    ffn_work,
    flash_layer,
    lowrank_layer,
    rank_space_layer,
    scored_pairs,
)
from flashsvd.engines.build import build
from flashsvd.errors import InputError
from flashsvd.factors import factorise
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import RankPlan
from flashsvd.spectra import compute

B, S, E = 2, 10, 2
M = B * S


def _shape(per_head: bool = True, kv_heads: int = 2) -> ModelShape:
    """d 8, 2 heads of 4, D 16."""
    slots = (
        Slot("q", 8, 8, heads=2, per_head=per_head),
        Slot("k", 4 * kv_heads, 8, heads=kv_heads, per_head=per_head),
        Slot("v", 4 * kv_heads, 8, heads=kv_heads, per_head=per_head),
        Slot("o", 8, 8),
        Slot("up", 16, 8),
        Slot("down", 8, 16),
    )
    return ModelShape("toy", 8, 2, kv_heads, 4, 64, (slots,))


def _plan(q: object = (1, 2), k: object = (2, 1), v: object = (1, 1), o: int | None = 3) -> RankPlan:
    return RankPlan(_shape(), ((q, k, v, (o,), (5,), (4,)),))  # type: ignore[arg-type]


def test_dense_by_hand() -> None:
    weights = 4 * 64 + 2 * 128
    assert dense_layer(_shape(), 0, B, S, E) == Work(
        flops=2 * M * weights + 4 * B * S * S * 8,
        weight_bytes=E * weights,
        # x and q|k|v, these and out, out and o's, x and the wide one, that and down's.
        activation_bytes=E * M * ((8 + 24) + (24 + 8) + (8 + 8) + (8 + 16) + (16 + 8)),
    )


def test_lowrank_by_hand() -> None:
    columns = (3 + 3 + 2) + 3 + 5 + 4
    weights = 8 * (8 + 4) + 3 * 16 + 5 * 24 + 4 * 24
    dense = dense_layer(_shape(), 0, B, S, E)
    assert lowrank_layer(_plan(), 0, B, S, E) == Work(
        flops=2 * M * weights + 4 * B * S * S * 8,
        weight_bytes=E * weights,
        activation_bytes=dense.activation_bytes + 2 * E * M * columns,
    )


def test_flash_stores_no_wide_tensor_and_pays_for_rebuilding_again() -> None:
    lowrank = lowrank_layer(_plan(), 0, B, S, E)
    once = flash_layer(_plan(), 0, B, S, E)
    assert once == replace(lowrank, activation_bytes=lowrank.activation_bytes - 2 * E * M * (24 + 16))
    thrice = flash_layer(_plan(), 0, B, S, E, query_blocks=3)
    assert thrice == replace(once, flops=once.flops + 2 * 2 * M * (3 + 2) * 4)
    local = flash_layer(_plan(), 0, B, S, E, window=2)
    assert once.flops - local.flops == 4 * B * 8 * (S * S - scored_pairs(S, 2))


def test_a_dense_slot_counts_as_dense_in_every_algorithm() -> None:
    plan = RankPlan.dense(_shape())
    dense = dense_layer(_shape(), 0, B, S, E)
    assert lowrank_layer(plan, 0, B, S, E) == dense
    assert flash_layer(plan, 0, B, S, E) == replace(
        dense, activation_bytes=dense.activation_bytes - 2 * E * M * 16
    )


@pytest.mark.parametrize(("rank", "through"), [(3, 0), (1, 1)])
def test_rank_space_by_hand(rank: int, through: int) -> None:
    """An output of rank 3 goes in one product, as 8 x 2 weights are hardly more than 3 x (2 + 8)."""
    scores, keys, values = 1 + 1, 1 + 1, 1 + 1
    projected = scores + keys + values
    folded = through * (values + 8) if through else values * 8
    weights = 8 * projected + folded + 5 * 24 + 4 * 24
    assert rank_space_layer(_plan(o=rank), 0, B, S, E) == Work(
        flops=2 * M * weights + 2 * B * S * S * (scores + values),
        weight_bytes=E * weights,
        activation_bytes=2 * E * M * (projected + values + through + 8 + 5 + 4 + 8),
    )


def test_rank_space_with_a_dense_head_a_dense_output_and_shared_keys() -> None:
    mixed = rank_space_layer(_plan(q=(None, 2), k=(2, 3), o=None), 0, B, S, E)
    scores, values = 2 + 2, 2
    weights = 8 * (2 * scores + values) + values * 8 + 5 * 24 + 4 * 24
    assert mixed.weight_bytes == E * weights
    assert mixed.flops == 2 * M * weights + 2 * B * S * S * (scores + values)
    shared = RankPlan(_shape(kv_heads=1), (((1, 2), (3,), (2,), (3,), (5,), (4,)),))
    found = rank_space_layer(shared, 0, B, S, E)
    assert found.weight_bytes == E * (8 * (6 + 3 + 2) + 4 * 8 + 5 * 24 + 4 * 24)


def test_rank_space_needs_ranks_per_head() -> None:
    plan = RankPlan(_shape(per_head=False), (((3,), (3,), (3,), (3,), (5,), (4,)),))
    assert lowrank_layer(plan, 0, B, S, E).weight_bytes == E * (3 * 3 * 16 + 3 * 16 + 5 * 24 + 4 * 24)
    with pytest.raises(InputError, match="per head"):
        rank_space_layer(plan, 0, B, S, E)


def test_the_feed_forward_op_by_hand() -> None:
    stored = ffn_work(100, 16, 3, 5, E, streamed=False)
    assert stored == Work(2 * 100 * 16 * 8, E * 16 * 8, E * 100 * (8 + 32))
    assert ffn_work(100, 16, 3, 5, E, streamed=True).bytes == stored.bytes - E * 100 * 32


def test_pairs_within_a_window_are_counted() -> None:
    for seq, window in ((1, 0), (7, 2), (7, 6), (7, 90)):
        near = sum(abs(i - j) <= window for i in range(seq) for j in range(seq))
        assert scored_pairs(seq, window) == near
        earlier = sum(0 <= i - j <= window for i in range(seq) for j in range(seq))
        assert scored_pairs(seq, window, causal=True) == earlier
    assert scored_pairs(5, causal=True) == 15


def test_causal_attention_is_credited_with_half() -> None:
    masked = S * S - S * (S + 1) // 2
    dense, causal = (dense_layer(_shape(), 0, B, S, E, causal=causal) for causal in (False, True))
    assert causal == replace(dense, flops=dense.flops - 4 * B * masked * 8)
    for count in (lowrank_layer, flash_layer):
        both, earlier = (count(_plan(), 0, B, S, E, causal=causal) for causal in (False, True))
        assert earlier == replace(both, flops=both.flops - 4 * B * masked * 8)
    both, earlier = (rank_space_layer(_plan(), 0, B, S, E, causal=causal) for causal in (False, True))
    assert earlier == replace(both, flops=both.flops - 2 * B * masked * (2 + 2))


def test_shared_keys_cost_as_many_flops_and_fewer_bytes() -> None:
    """Every query head scores every key, but k and v are stored, and projected, once per group."""
    alone, shared = (dense_layer(_shape(kv_heads=heads), 0, B, S, E, causal=True) for heads in (2, 1))
    projected = 2 * 8 * 4
    assert alone.flops - shared.flops == 2 * M * projected
    assert alone.weight_bytes - shared.weight_bytes == E * projected
    assert alone.activation_bytes - shared.activation_bytes == 2 * E * M * (4 + 4)


def test_the_bert_base_layer_costs_what_the_notes_say() -> None:
    from flashsvd.models.families.bert import FAMILY
    from flashsvd.models.sources import resolve, shape_of

    shape = shape_of(resolve("bert-base"))
    assert shape is not None and FAMILY.title == "BERT"
    plan = by_role(shape, 40, 240, 240)
    found = 12 * rank_space_layer(plan, 0, 32, 512, 2).flops
    # 1.47 by two output products; one costs a little more.
    one_for_two = 12 * 2 * 32 * 512 * (480 * 768 - 240 * (480 + 768))
    assert (found - one_for_two) / 1e12 == pytest.approx(1.47, abs=0.01)


@pytest.mark.parametrize("per_head", [True, False])
def test_flops_are_what_torch_counts(tiny: LoadedModel, per_head: bool) -> None:
    loaded = replace(tiny, shape=tiny.shape.with_per_head(per_head))
    plan = by_role(loaded.shape, 9, 20, 11)
    factors = factorise(loaded, compute(loaded, method_named("svd")), plan)
    layers = range(len(loaded.shape.layers))
    batch, seq = 3, 17
    ids = torch.randint(200, (batch, seq))
    for engine in ("dense", "lowrank"):
        model = copy.deepcopy(build(loaded, engine, factors, plan).base_model)
        model.pooler = None
        counter = FlopCounterMode(display=False)
        # The plain formula: torch has no count for the CPU's fused attention.
        with counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
            model(ids)
        count = {
            "dense": sum(dense_layer(loaded.shape, layer, batch, seq, 4).flops for layer in layers),
            "lowrank": sum(lowrank_layer(plan, layer, batch, seq, 4).flops for layer in layers),
        }
        assert counter.get_total_flops() == count[engine]
