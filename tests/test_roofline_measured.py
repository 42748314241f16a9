"""What the roofline draws as measured is what the bench recordings hold, and our counts are theirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flashsvd.bench.saved import bundled_benches, read_points
from flashsvd.errors import InputError
from flashsvd.jobs.kinds import kind_of
from flashsvd.jobs.kinds.ceilings import CeilingsRequest
from flashsvd.measure.ceilings import Ceilings
from flashsvd.models.sources import resolve, shape_of
from flashsvd.roofline import Engine, Setting, forward_ops, step_ops, whole
from flashsvd.roofline_measured import Measured, bundled, data_sheets, matches, read_bench
from flashsvd.session import Session

BENCH = read_bench(bundled())


def test_every_measured_row_is_there_once() -> None:
    assert bundled() == bundled_benches()
    rows = [
        (saved.point.config["model"], row.name, row.latency_ms.p50)
        for path in bundled_benches()
        for saved in read_points(path)
        for row in saved.point.rows
        if row.latency_ms and row.flops and row.bytes and not (row.gate and not row.gate.passed)
    ]
    assert [(point.model, point.name, point.milliseconds) for point in BENCH.points] == rows and rows


def test_the_highest_ceiling_of_a_machine_is_its_roof() -> None:
    found = [saved.place.ceilings.bf16_tflops for path in bundled_benches() for saved in read_points(path)]
    assert BENCH.ceilings["H200", "bf16"].flops_s == 1e12 * max(rate for rate in found if rate)
    assert BENCH.ceilings["H200", "bf16"].source == "MEASURED"


def _plain(point: Measured) -> bool:
    """Not micro-batches, nor the engine that rebuilds q, k and v where another is drawn."""
    return "micro" not in point.name and "rebuild" not in point.name


@pytest.mark.parametrize("model", ["bert-base", "bert-large", "llama-2-7b"])
def test_counts_are_those_of_the_recordings(model: str) -> None:
    shape = shape_of(resolve(model))
    assert shape is not None
    causal = model.startswith("llama")
    points = [point for point in BENCH.of_model(model) if _plain(point)]
    assert len({point.name for point in points}) > 3
    for point in points:
        setting = Setting(
            point.batch,
            point.seq,
            2,
            causal=causal,
            absorbing=not causal,
            vocabulary=32_000 if causal else None,
        )
        engine: Engine = (
            "dense" if point.dense else "lowrank" if point.name.startswith("lowrank") else "flash"
        )
        count = step_ops if point.mode == "decode" else forward_ops
        found = whole(count(point.plan(shape), engine, setting), BENCH.ceilings["H200", "bf16"])
        assert (found.flops, found.bytes) == (point.flops, point.bytes), point
        assert 1e3 * found.seconds < point.milliseconds, "nothing is faster than its least time"


def test_a_point_matches_its_own_plan_alone() -> None:
    shape = shape_of(resolve("bert-base"))
    assert shape is not None
    flash = next(point for point in BENCH.of_model("bert-base") if point.name == "flash")
    other = next(
        point
        for point in BENCH.of_model("bert-base")
        if point.name == "flash" and point.settings != flash.settings
    )
    assert matches(flash, shape, flash.plan(shape)) and not matches(other, shape, flash.plan(shape))


def test_data_sheets_leave_out_what_a_gpu_lacks() -> None:
    assert "T4" in {one.name for one in data_sheets("fp16")} - {one.name for one in data_sheets("bf16")}
    assert all(one.ridge > 1 and one.source == "DATA SHEET" for one in data_sheets("fp32"))


def test_what_is_no_bench_recording_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a bench recording"):
        read_bench([tmp_path / "a.parquet"])


def test_the_job_that_measures_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Ceilings(0.1, None, None, 0.02, "highest", 64, 1024)
    monkeypatch.setattr("flashsvd.measure.ceilings.measure_ceilings", lambda device, dtypes: made)
    request = CeilingsRequest("fp32", "cpu")
    found = kind_of(request).run(request, Session(), lambda stage, share: None, lambda part: None)
    assert (found.flops_s, found.bytes_s, found.machine.device) == (0.1e12, 0.02e12, "cpu")


def test_pages_count_without_torch() -> None:
    words = (
        "import sys, flashsvd.roofline, flashsvd.roofline_measured, flashsvd.tradeoff, flashsvd.curve_set, "
        "flashsvd.figures.roofline, flashsvd.figures.pareto, flashsvd.jobs.kinds.curves, "
        "flashsvd.jobs.kinds.ceilings; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0
