"""The rules of a contest: who may claim a ratio, and what becomes of those that fail."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from flashsvd.bench.contest import Contestant, Prepared, Terms, run_contest
from flashsvd.bench.counts import Work
from flashsvd.bench.rows import Baselines, Point, Row, document
from flashsvd.bench.table import point_lines
from flashsvd.errors import Cancelled
from flashsvd.measure.ceilings import Ceilings
from flashsvd.measure.machine import describe_machine
from flashsvd.results import GateReport, Quantiles

CPU = torch.device("cpu")
CEILINGS = Ceilings(0.5, None, None, 0.01, "highest", 64, 64)
BASELINES = Baselines(latency="base", peak="base")
TERMS = Terms(CPU, "fp32", CEILINGS, BASELINES, repeats=3, budget_seconds=5)


def _contestant(
    call: Callable[[], object], peak: int | None = 100, left_out: str | None = None
) -> Contestant:
    def checked(out: object) -> torch.Tensor:
        assert isinstance(out, torch.Tensor)
        return out

    return Contestant(
        "words", Work(10**6, 300, 700), lambda: Prepared(call, checked, lambda: peak, 12), left_out
    )


def _judge(_: str, out: torch.Tensor) -> GateReport:
    error = float((out - 1).abs().max())
    return GateReport(error <= 0.1, error, 0.05, 0.1, "ones")


def _silent(stage: str, share: float) -> None:
    assert 0 <= share <= 1


def _run(**contestants: Contestant) -> dict[str, Row]:
    rows = run_contest(contestants, _judge, TERMS, _silent)
    assert [row.name for row in rows] == list(contestants)
    return {row.name: row for row in rows}


def _right() -> torch.Tensor:
    return torch.ones(3)


def _wrong() -> torch.Tensor:
    return torch.tensor([1.0, 1.0, 2.0])


def test_a_right_row_has_its_ratios_and_rates() -> None:
    rows = _run(base=_contestant(_right, peak=300), mine=_contestant(_right, peak=100))
    mine, base = rows["mine"], rows["base"]
    assert mine.latency_ms and base.latency_ms and mine.tflops and mine.gbps
    assert mine.speedup == base.latency_ms.p50 / mine.latency_ms.p50
    assert (mine.peak_reduction, base.peak_reduction, base.speedup) == (3.0, 1.0, 1.0)
    assert mine.tflops == pytest.approx(10**6 / (mine.latency_ms.p50 / 1e3) / 1e12)
    assert mine.gbps == pytest.approx(1000 / (mine.latency_ms.p50 / 1e3) / 1e9)
    assert mine.compute_share == pytest.approx(mine.tflops / 0.5)
    assert mine.bandwidth_share == pytest.approx(mine.gbps / 10)
    assert mine.ceiling_share == max(mine.compute_share or 0, mine.bandwidth_share or 0)


def test_what_puts_a_call_back_runs_ahead_of_every_call_and_outside_its_time() -> None:
    events: list[str] = []

    def call() -> torch.Tensor:
        events.append("call")
        return torch.ones(3)

    def prepare() -> Prepared:
        prepared = _contestant(call).prepare()
        more = {"kv_bytes": 5, "launches": 1}
        return replace(
            prepared,
            before=lambda: (events.append("back"), time.sleep(0.02)),
            more=lambda: more,
        )

    contestant = replace(_contestant(call), prepare=prepare)
    terms = replace(TERMS, steps=4, warm=2, before=lambda: events.append("flush"))
    (row,) = run_contest({"mine": contestant}, _judge, terms, _silent)
    assert events == ["call", *["back", "flush", "call"] * 5]
    assert row.latency_ms and row.latency_ms.p50 < 5 and (row.kv_bytes, row.launches) == (5, 1)
    assert row.tflops == pytest.approx(10**6 / (row.latency_ms.p50 / 1e3) / 1e12)


def test_a_ratio_over_our_own_runtime_is_refused_like_the_others() -> None:
    terms = replace(TERMS, baselines=Baselines("base", "base", runtime="own"))

    def run(**contestants: Contestant) -> dict[str, Row]:
        return {row.name: row for row in run_contest(contestants, _judge, terms, _silent)}

    rows = run(base=_contestant(_right), own=_contestant(_right), mine=_contestant(_right))
    mine, own = rows["mine"], rows["own"]
    assert mine.latency_ms and own.latency_ms and own.runtime_speedup == 1.0
    assert mine.runtime_speedup == own.latency_ms.p50 / mine.latency_ms.p50
    red = run(base=_contestant(_right), own=_contestant(_wrong), mine=_contestant(_right))["mine"]
    assert red.speedup and red.runtime_speedup is None
    assert red.runtime_refused and red.runtime_refused.startswith("own is wrong")
    assert _run(base=_contestant(_right))["base"].runtime_refused is None


def test_a_wrong_row_is_timed_but_claims_nothing() -> None:
    mine = _run(base=_contestant(_right), mine=_contestant(_wrong))["mine"]
    assert mine.latency_ms and mine.gate and not mine.gate.passed
    assert mine.speedup is None and mine.peak_reduction is None
    assert mine.speedup_refused == mine.peak_refused == "mine is wrong: error 1.0e+00, at most 1.0e-01 passes"


def test_nobody_is_faster_than_a_wrong_baseline() -> None:
    rows = _run(base=_contestant(_wrong), mine=_contestant(_right))
    assert rows["mine"].speedup is None
    assert rows["mine"].speedup_refused and rows["mine"].speedup_refused.startswith("base is wrong")


def test_without_its_baseline_a_row_has_no_ratio() -> None:
    assert _run(mine=_contestant(_right))["mine"].speedup_refused == "base was not run"
    absent = _run(base=_contestant(_right, left_out="no GPU"), mine=_contestant(_right))
    assert absent["base"].status == "left out" and absent["base"].reason == "no GPU"
    assert absent["mine"].speedup_refused == "base was left out"


def test_a_peak_that_cannot_be_told_costs_that_ratio_only() -> None:
    rows = _run(base=_contestant(_right), mine=_contestant(_right, peak=None))
    assert rows["mine"].speedup and rows["mine"].peak_reduction is None
    assert rows["mine"].peak_refused == "the peak of mine could not be measured"


def test_what_fails_is_one_line_and_the_rest_goes_on() -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("inductor has no compiler\nwith a long story\n" + "x" * 5000)

    def unmade() -> Prepared:
        raise torch.OutOfMemoryError("CUDA out of memory " + "y" * 500)

    rows = _run(
        base=_contestant(_right),
        broken=_contestant(broken),
        unmade=replace(_contestant(_right), prepare=unmade),
        mine=_contestant(_right),
    )
    assert rows["broken"].status == "failed"
    assert rows["broken"].reason == "RuntimeError: inductor has no compiler"
    assert rows["unmade"].reason and len(rows["unmade"].reason) == 200
    assert rows["broken"].speedup_refused == "broken failed" and rows["mine"].speedup
    assert not _run(base=_contestant(broken))["base"].latency_ms


def test_a_cancel_is_no_failure_of_a_row() -> None:
    def cancelled() -> torch.Tensor:
        raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        _run(base=_contestant(cancelled))


def _point(*rows: Row, failure: str | None = None) -> Point:
    return Point("ffn", {"rows": 3}, "python -m x", "2026-01-01", "about", BASELINES, rows, failure)


def test_json_rows_stand_alone_and_know_no_infinity() -> None:
    gate = GateReport(False, math.inf, math.nan, 0.1, "ones")
    row = Row("mine", "words", "measured", latency_ms=Quantiles(1, 2, 3), gate=gate)
    found = document(
        (_point(row), _point(failure="no room")), describe_machine(CPU), CEILINGS, interrupted=True
    )
    again = json.loads(json.dumps(found, allow_nan=False))
    entry = again["rows"][0]
    assert again["interrupted"] and again["format"] == "flashsvd-bench/1"
    assert entry["gate"]["error"] is None and entry["speedup"] is None and not entry["gate"]["passed"]
    assert entry["command"] == "python -m x" and entry["config"] == {"rows": 3} and entry["created"]
    assert entry["machine"]["cores"] and entry["versions"]["torch"] == torch.__version__
    assert again["failures"] == [{"command": "python -m x", "config": {"rows": 3}, "reason": "no room"}]


def test_the_table_says_why_there_is_no_ratio() -> None:
    rows = run_contest(
        {
            "base": _contestant(_right),
            "mine": _contestant(_wrong),
            "blind": _contestant(_right, peak=None),
            "graph": _contestant(_right, left_out="CUDA graphs need a GPU"),
        },
        _judge,
        TERMS,
        _silent,
    )
    text = "\n".join(point_lines(_point(*rows)))
    assert "1.0e+00 WRONG" in text and "0.0e+00 ok" in text
    assert text.count("mine: no ratio: mine is wrong") == 1
    assert "blind: no peak ratio: the peak of blind could not be measured" in text
    assert "blind: no speed-up" not in text
    assert "graph: left out: CUDA graphs need a GPU" in text
    assert point_lines(_point(failure="no room"))[-1] == "  failed: no room"
