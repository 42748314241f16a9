"""Traces of programs: what is written is read, what is no trace is one line, and calls find the nearest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashsvd.errors import InputError
from flashsvd.onchip.calls import KERNELS, KernelCall
from flashsvd.onchip.sm_numbers import numbers, verdict
from flashsvd.onchip.sm_trace import (
    SmTrace,
    SmTraces,
    difference,
    files,
    read_all,
    read_trace,
    write_trace,
)
from flashsvd.results import Quantiles
from tests.onchip.sm_samples import CALL, of, trace


def same(one: SmTrace, other: SmTrace) -> bool:
    return all(
        np.array_equal(getattr(one, item.name), getattr(other, item.name))
        if item.name in ("sm", "start_ns", "end_ns")
        else getattr(one, item.name) == getattr(other, item.name)
        for item in dataclasses.fields(SmTrace)
    )


@pytest.mark.parametrize("grid", [(256,), (64, 4, 1)])
def test_a_trace_round_trips(tmp_path: Path, grid: tuple[int, ...]) -> None:
    path = tmp_path / "deep" / "one.parquet"
    made = trace(grid=grid)
    write_trace(path, made)
    found = read_trace(path)
    assert same(made, found) and found.call == CALL and found.sm.dtype == np.int64
    assert path.stat().st_size < 20_000 and [one.name for one in path.parent.iterdir()] == ["one.parquet"]
    assert [one.call for one in read_all(path.parent)] == [CALL]


def rewritten(path: Path, change: Any, **columns: Any) -> None:
    """The same file with another header, and other columns."""
    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[b"flashsvd"])
    change(header)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table.replace_schema_metadata({b"flashsvd": json.dumps(header).encode()}), path)


def inside(**changes: Any) -> Any:
    return lambda header: header["trace"].update(changes)


NOTHING: Any = lambda header: None  # noqa: E731
BROKEN = [
    (lambda header: header.update(format="flashsvd-sm-trace/0"), {}, "format"),
    (lambda header: header.pop("trace"), {}, "lacks a part"),
    (lambda header: header["trace"].pop("grid"), {}, "no field 'grid'"),
    (inside(grid=[255]), {}, "256 programs"),
    (inside(grid="all"), {}, "wrong kind"),
    (inside(sm_count=100), {}, "multiprocessor 131 of 100"),
    (inside(gpu="H9000"), {}, "H9000"),
    (inside(plain_ms={"p20": 2.0, "p50": 1.0, "p80": 3.0}), {}, "times of 2.0"),
    (inside(timer_step_ns=0), {}, "timer's step"),
    (inside(timer_step_ns="32"), {}, "wrong kind"),
    (inside(error=-1.0), {}, "difference of outputs"),
    (inside(instrumented={"registers": 128, "spill_bytes": 0, "shared_bytes": 1 << 20}), {}, "does not fit"),
    (NOTHING, {"end_ns": np.zeros(256, np.int64)}, "ends before it starts"),
    (NOTHING, {"start_ns": np.full(256, 5)}, "none starts at 0"),
    (NOTHING, {"sm": ["a"] * 256}, "lacks a part"),
    (NOTHING, {"sm": np.full(256, -1)}, "multiprocessor"),
    (NOTHING, {"sm": np.full(256, 0.5)}, "lacks a part"),
]


@pytest.mark.parametrize(("change", "columns", "words"), BROKEN, ids=[words for _, _, words in BROKEN])
def test_a_broken_file_is_one_line(tmp_path: Path, change: Any, columns: dict[str, Any], words: str) -> None:
    path = tmp_path / "one.parquet"
    write_trace(path, trace())
    rewritten(path, change, **columns)
    with pytest.raises(InputError, match=words) as error:
        read_trace(path)
    assert "one.parquet" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no table" * 40])
def test_another_file_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "one.parquet"
    path.write_bytes(data)
    with pytest.raises(InputError, match="record it again"):
        read_trace(path)


def test_what_is_no_trace_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no kernel is called 'mine'"):
        write_trace(tmp_path / "a.parquet", trace(call=dataclasses.replace(CALL, kernel="mine")))
    with pytest.raises(InputError, match="times of"):
        write_trace(tmp_path / "a.parquet", trace(plain_ms=Quantiles(0.0, 0.0, 0.0)))
    assert not list(tmp_path.iterdir())


def test_every_shipped_trace_is_sound() -> None:
    kernels = set()
    for path in files():
        found = read_trace(path)
        words, predicted = verdict(found, numbers(found))
        assert words != "more than predicted" and predicted >= 1, path
        assert found.command.startswith("python -m flashsvd.onchip.trace"), path
        assert found.repeats >= 20 and found.timer_step_ns < found.end_ns.max(), path
        # Beyond that the picture would be that of another kernel.
        assert abs(found.overhead) < 0.15 and found.error < 1e-3, path
        kernels.add(found.call.kernel)
    assert kernels == set(KERNELS)


def test_a_call_finds_itself_and_else_the_nearest() -> None:
    near = dataclasses.replace(CALL, rank=312, rank_out=312)
    small = dataclasses.replace(CALL, batch=8, seq=256)
    full = dataclasses.replace(CALL, dtype="fp32")
    table = SmTraces(trace(call=call) for call in (near, CALL, small, full))

    def found(call: KernelCall) -> KernelCall | None:
        one = table.find(call)
        return None if one is None else one.call

    for call in (near, CALL, small, full):
        assert found(call) == call
    assert found(dataclasses.replace(CALL, rank=304, rank_out=304)) == near
    assert found(dataclasses.replace(CALL, batch=4, seq=256)) == small
    assert found(dataclasses.replace(full, rank=64)) == full
    assert found(dataclasses.replace(CALL, kernel="ffn_hopper")) is None
    assert SmTraces().find(CALL) is None and len(table) == 4


def test_of_equal_calls_the_gpu_and_then_the_newest_is_taken() -> None:
    old, new = trace(created="2026-11-01T00:00:00+00:00"), trace(created="2026-11-20T00:00:00+00:00")
    other = trace(gpu="H100 SXM")
    table = SmTraces((old, other, new))
    assert table.find(CALL, "H200") is new and table.find(CALL, "H100 SXM") is other


def test_a_difference_is_in_words() -> None:
    assert difference(CALL, CALL) == ""
    assert (
        difference(dataclasses.replace(CALL, dtype="fp16", batch=8), CALL) == "fp16 for bf16, batch 8 for 32"
    )
    assert difference(dataclasses.replace(CALL, activation="relu"), CALL) == "another form of the model"


def test_predictions_are_of_the_build_that_ran() -> None:
    made = of([(0, 0, 64)], at_once=3)
    assert made.predicted().blocks == 3 and made.predicted().limiter == "shared memory"
    heavier = dataclasses.replace(made, instrumented=dataclasses.replace(made.plain, registers=255))
    assert heavier.predicted().blocks == 2 and heavier.predicted(heavier.plain).blocks == 3
    assert made.overhead == pytest.approx(0.0889 / 0.0881 - 1)
