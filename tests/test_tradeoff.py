"""Points find their place on every axis, or are counted as left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flashsvd.curve_set import (
    CostTable,
    CurvePart,
    CurveSet,
    CurvesRequest,
    PlanCost,
    points_table,
    read_curves,
    write_curves,
)
from flashsvd.errors import InputError
from flashsvd.figures.pareto import pareto
from flashsvd.results import Machine, Metric, Quantiles
from flashsvd.tradeoff import cost_table, least_keep, tradeoff
from tests.app import fakes

CURVE = fakes.curve()
WORSE = dataclasses.replace(
    CURVE,
    method="whiten",
    points=tuple(dataclasses.replace(p, metric=fakes.metric(p.metric.value - 0.05)) for p in CURVE.points),
)


def cost(plan: str, ms: float, group: int = 1) -> PlanCost:
    return PlanCost(plan, group, "flash", Quantiles(ms, ms, ms), int(ms * 2**20), 100)


def table(*costs: PlanCost, machine: Machine = fakes.MACHINE) -> CostTable:
    return CostTable("2026-11-12", machine, "stdlib-bert", True, 8, 256, "fp32", 10, cost("", 50), costs)


def test_keep_and_weights_need_no_measurement() -> None:
    found = tradeoff([CURVE], "keep", "score", dtype="fp32")
    assert [spot.x for spot in found.spots] == pytest.approx([100 * point.keep for point in CURVE.points])
    assert found.dense == (100.0, CURVE.dense) and found.left_out == 0
    weights = tradeoff([CURVE], "weights", "score", dtype="bf16")
    kept = CURVE.points[0].kept_parameters
    whole = fakes.INFO.parameters - fakes.SHAPE.dense_parameters + kept
    assert weights.spots[0].x == pytest.approx(2 * whole / 2**20)


def test_what_was_not_timed_is_left_out_and_counted() -> None:
    timed = [cost(point.plan, 10 + index) for index, point in enumerate(CURVE.points[:3])]
    found = tradeoff([CURVE], "latency", "score", dtype="fp32", costs=[table(*timed)])
    assert [spot.x for spot in found.spots] == [10, 11, 12] and found.left_out == 7
    assert found.dense == (50.0, CURVE.dense)
    memory = tradeoff([CURVE], "memory", "score", dtype="fp32", costs=[table(*timed)])
    assert [spot.x for spot in memory.spots] == [10, 11, 12]


def test_memory_alone_has_no_place_among_latencies() -> None:
    alone = dataclasses.replace(cost(CURVE.points[0].plan, 10), latency_ms=None)
    found = tradeoff([CURVE], "latency", "score", dtype="fp32", costs=[table(alone)])
    assert found.left_out == 10
    both = [table(alone), table(cost(CURVE.points[0].plan, 12))]
    timed = tradeoff([CURVE], "latency", "score", dtype="fp32", costs=both)
    assert [spot.x for spot in timed.spots] == [12]
    assert tradeoff([CURVE], "memory", "score", dtype="fp32", costs=both).spots[0].x == 12


def test_a_plan_costs_the_same_whatever_method_made_it() -> None:
    timed = table(cost(CURVE.points[0].plan, 10))
    assert timed.of("whiten", CURVE.points[0].plan) == timed.of("svd", CURVE.points[0].plan)
    assert timed.of("basis_sharing", CURVE.points[0].plan) is None, "its layers share factors"


def test_latencies_of_two_machines_are_not_mixed() -> None:
    other = dataclasses.replace(fakes.MACHINE, accelerator="NVIDIA H200")
    here = table(*(cost(point.plan, 10) for point in CURVE.points[:2]))
    there = table(*(cost(point.plan, 1) for point in CURVE.points[2:]), machine=other)
    found = tradeoff([CURVE], "latency", "score", dtype="fp32", costs=[here, there])
    assert {spot.x for spot in found.spots} == {1} and found.left_out == 2


def test_kl_and_agreement_are_left_out_where_not_recorded() -> None:
    assert tradeoff([CURVE], "keep", "kl", dtype="fp32").left_out == 10
    kl = Metric("kl", 0.2, 512, 0.1, 0.3, None, 0)
    points = [dataclasses.replace(CURVE.points[0], kl=dataclasses.replace(kl, value=v)) for v in (0.2, 0.0)]
    found = tradeoff([dataclasses.replace(CURVE, points=tuple(points))], "keep", "kl", dtype="fp32")
    assert len(found.spots) == 1 and found.left_out == 1, "KL 0 has no place on a logarithmic axis"


def test_runs_and_points_that_come_in_are_points_too() -> None:
    part = CurvePart("fwsvd", "uniform", CURVE.points[4])
    found = tradeoff([CURVE], "keep", "score", dtype="fp32", coming=[part], runs=[fakes.comparison(0.3)])
    assert [spot.source for spot in found.spots[-2:]] == ["coming", "run"]
    made = cost_table(fakes.comparison(0.3))
    assert (
        made is not None
        and made.dense.latency_ms
        and made.dense.latency_ms.p50 == 110.0
        and len(made.plans) == 1
    )


def test_the_front_leaves_the_worse_method_out() -> None:
    found = tradeoff([WORSE, CURVE], "keep", "score", dtype="fp32")
    assert {found.spots[index].method for index in found.front} == {"svd"}


def test_least_keep_orders_curves() -> None:
    found = least_keep([WORSE, CURVE], 0.06)
    assert [curve.method for curve, _ in found] == ["svd", "whiten"]
    language = fakes.language_curve()
    near = least_keep([language], 0.05)[0][1]
    assert near.metric.value <= 1.05 * 4.1 and near.keep < 1


@pytest.mark.parametrize("axis", ["keep", "weights", "latency", "memory"])
def test_the_figure_has_every_method_the_star_and_the_front(axis: str) -> None:
    timed = table(*(cost(point.plan, 10 + index) for index, point in enumerate(CURVE.points)))
    found = tradeoff([CURVE, WORSE], axis, "score", dtype="fp32", costs=[timed])  # type: ignore[arg-type]
    here = ("whiten", WORSE.points[4].plan)
    figure = pareto(found, axis, titles={"svd": "SVD"}, here=here)  # type: ignore[arg-type]
    names = [trace.name for trace in figure.data]
    assert {"SVD", "whiten", "dense", "front: no point beats it", "you are here"} <= set(names)
    assert names.count("95 % band") == (2 if axis in ("keep", "weights") else 0)
    one = next(trace for trace in figure.data if trace.name == "SVD")
    assert one.customdata[4][:2] == ["svd", CURVE.points[4].plan] and one.customdata[4][3] == "0.5"
    assert "95 %" not in one.customdata[4][2] and "n = 512 pieces" in one.customdata[4][2]


def test_colours_and_markers_of_methods_differ() -> None:
    from flashsvd.figures.theme import method_style
    from flashsvd.methods import methods

    for mode in ("light", "dark"):
        styles = [method_style(name, mode) for name in methods()]
        assert len({colour for colour, _ in styles}) == len(styles) == len({mark for _, mark in styles})
        assert method_style("never-heard-of", mode) == method_style("never-heard-of", mode)


def test_an_empty_picture_is_drawn() -> None:
    assert pareto(tradeoff([], "latency", "score", dtype="fp32"), "latency").data == ()


def test_a_recording_of_curves_round_trips(tmp_path: Path) -> None:
    found = CurveSet((CURVE, WORSE), (table(cost(CURVE.points[0].plan, 10)),), "python -m flashsvd curve")
    write_curves(tmp_path / "a.parquet", found)
    assert read_curves(tmp_path / "a.parquet") == found
    assert len(points_table(found.curves)) == 20
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a recording of curves"):
        read_curves(tmp_path / "b.parquet")


def test_one_request_for_each_method_and_allocator() -> None:
    request = CurvesRequest("m", (0.5,), ("svd", "whiten", "svd"), ("uniform", "energy"), task="text:a.txt")
    assert [(one.method, one.allocator) for one in request.single()] == [
        ("svd", "uniform"),
        ("svd", "energy"),
        ("whiten", "uniform"),
        ("whiten", "energy"),
    ]
    assert {one.task for one in request.single()} == {"text:a.txt"}
