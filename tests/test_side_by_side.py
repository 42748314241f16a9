"""Two runs side by side: only what can be compared is."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsvd.allocate import uniform
from flashsvd.ranks import RankPlan
from flashsvd.results import Comparison, EngineRun
from flashsvd.side_by_side import (
    ALIGNED_COLUMNS,
    NumberRow,
    by_layer_and_op,
    incomparable,
    numbers,
    rank_cells,
    shared_engines,
)
from tests.app import fakes
from tests.runs import kept


def row(a: Comparison, b: Comparison, label: str, engine: str = "flash") -> NumberRow:
    return next(found for found in numbers(a, b, engine) if found.label == label)


def flash(result: Comparison) -> EngineRun:
    run = result.run("flash")
    assert run is not None
    return run


def test_differences_are_b_minus_a() -> None:
    a, b = kept.comparison(0.5), dataclasses.replace(fakes.comparison(0.4, flash_ms=77.0, gate=fakes.GREEN))
    latency = row(a, b, "Latency, median")
    assert latency.difference == pytest.approx(77.0 - flash(a).latency_ms.p50)
    assert latency.tone == ("good" if latency.difference < 0 else "bad")
    assert row(a, b, "Keep, of factored weights").difference == pytest.approx(b.keep - a.keep)
    assert row(a, b, "Keep, of factored weights").tone == "plain"
    assert row(a, b, "Parameters").tone == "good"
    assert row(a, b, "Peak activation memory").words()[2] == "same"
    assert row(a, a, "Accuracy").difference == 0


def test_differences_within_the_noise_are_neither_good_nor_bad() -> None:
    a = kept.comparison(0.5)
    run = flash(a)
    for factor, tone in ((0.99, "plain"), (1.02, "plain"), (0.8, "good"), (1.3, "bad")):
        b = fakes.comparison(0.5, flash_ms=factor * run.latency_ms.p50, gate=fakes.GREEN)
        assert row(a, b, "Latency, median").tone == tone, factor
    assert run.metric is not None
    for score, tone in ((run.metric.low + 0.001, "plain"), (run.metric.low - 0.01, "bad")):
        assert row(a, fakes.comparison(0.5, score=score, gate=fakes.GREEN), "Accuracy").tone == tone


def test_a_run_whose_outputs_differ_claims_no_speed() -> None:
    a = kept.comparison()
    for gate in (fakes.RED, None):
        b = fakes.comparison(flash_ms=10.0, gate=gate)
        assert row(a, b, "Latency, median").difference is None
        assert row(a, b, "Peak activation memory").difference is not None
        assert row(a, b, "Latency, median", "dense").difference is not None


OTHER = {
    "machine": {"machine": dataclasses.replace(fakes.MACHINE, cores=8)},
    "machine (cpu)": {"machine": dataclasses.replace(fakes.MACHINE, cpu="Other CPU")},
    "batch": {"batch": 16},
    "batch (tokens)": {"seq": 128},
    "precision": {"dtype": "bf16"},
    "model": {"model": dataclasses.replace(fakes.INFO, name="other")},
}


@pytest.mark.parametrize("what", OTHER)
def test_other_machines_batches_and_precisions_are_one_line_and_no_difference(what: str) -> None:
    a, b = kept.comparison(), kept.comparison(**OTHER[what])
    line = incomparable(a, b)
    assert line is not None and "\n" not in line and what.partition(" ")[0] in line
    assert all(
        found.difference is None
        for found in numbers(a, b, "flash")
        if found.unit in ("bytes", "ms") and "Weights" not in found.label
    )
    assert incomparable(a, a) is None


def test_scores_of_other_samples_have_no_difference() -> None:
    a, b = kept.comparison(), kept.comparison()
    fewer = tuple(dataclasses.replace(run, metric=fakes.metric(0.8, n=64)) for run in b.runs)
    assert row(a, dataclasses.replace(b, runs=fewer), "Accuracy").difference is None
    words = fakes.language(b, 4.6)
    labels = [found.label for found in numbers(a, words, "flash")]
    assert "Accuracy" in labels and "Perplexity" in labels


def test_only_engines_of_both_are_compared() -> None:
    a, b = kept.comparison(), kept.comparison()
    b = dataclasses.replace(b, runs=b.runs[:1])
    assert shared_engines(a, b) == ("dense",)
    with pytest.raises(ValueError, match="both runs"):
        numbers(a, b, "flash")


def test_ranks_are_listed_where_plans_differ() -> None:
    base = uniform(fakes.SHAPE, 0.5)
    other = base.replace(2, "up", (40,)).replace(4, "q", (25, 16, None, 25))
    cells = rank_cells(base, other)
    assert cells is not None
    found = {(cell.layer, cell.slot): cell for cell in cells}
    assert set(found) == {(2, "up"), (4, "q")}
    assert found[2, "up"].a == str(base.get(2, "up")[0]) and found[2, "up"].b == "40"
    assert found[4, "q"].b == "16–25, 1 dense" and found[2, "up"].difference < 0
    assert rank_cells(base, base) == ()
    assert rank_cells(base, uniform(fakes.bert_shape(2), 0.5)) is None


def test_heads_and_whole_matrices_of_one_model_are_compared() -> None:
    whole = uniform(fakes.SHAPE.with_per_head(False), 0.5)
    cells = rank_cells(uniform(fakes.SHAPE, 0.5), whole)
    assert cells and {cell.slot for cell in cells} == {"q", "k", "v"}


@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_shares_of_all_cells_add_up_to_the_plans_parameters(one: float, other: float) -> None:
    a, b = uniform(fakes.SHAPE, one), uniform(fakes.SHAPE, other)
    changed = sum(
        cell.difference
        * fakes.SHAPE.slot(cell.layer, cell.slot).out_features
        * fakes.SHAPE.slot(cell.layer, cell.slot).in_features
        for cell in rank_cells(a, b) or ()
    )
    assert changed == pytest.approx(b.kept_parameters - a.kept_parameters, abs=1)
    back = sum(cell.difference for cell in rank_cells(b, a) or ())
    assert back == pytest.approx(-sum(cell.difference for cell in rank_cells(a, b) or ()), abs=1e-9)


def test_a_dense_plan_keeps_all_of_every_cell() -> None:
    cells = rank_cells(uniform(fakes.SHAPE, 0.5), RankPlan.dense(fakes.SHAPE))
    assert cells is not None and len(cells) == len(list(fakes.SHAPE))
    assert all(cell.b == "dense" and cell.b_share == 1.0 for cell in cells)


def test_memory_is_aligned_by_layer_and_op() -> None:
    a = fakes.run("flash", 1.0, 4 * fakes.MIB, None, layers=2)
    b = fakes.run("flash", 1.0, 6 * fakes.MIB, None, layers=3)
    table = by_layer_and_op(a, b)
    assert tuple(table.columns) == ALIGNED_COLUMNS
    assert set(table["layer"]) == {0, 1, 2, 3}
    only_b = table[table["layer"] == 3]
    assert only_b["a_bytes"].isna().all() and only_b["b_bytes"].notna().all()
    differences = table["difference_bytes"].dropna().abs().tolist()
    assert differences == sorted(differences, reverse=True)
    assert table["b_bytes"].max() == b.timeline["live_bytes"].max() - 24 * fakes.MIB
    # The same run against itself is the same everywhere.
    assert (by_layer_and_op(a, a)["difference_bytes"] == 0).all()
