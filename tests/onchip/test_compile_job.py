"""Compiling in a process of its own, from a worker that interprets Triton."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flashsvd.errors import Cancelled, FlashSVDError
from flashsvd.jobs.kinds import compile as kind
from flashsvd.jobs.kinds import kind_of
from flashsvd.onchip import process
from flashsvd.onchip.calls import KernelCall
from flashsvd.onchip.compiled import Compiled
from flashsvd.onchip.request import CompiledCalls, CompileRequest

SMALL = KernelCall("rank_space", "fp32", 1, 64, 16, 16, heads=2, kv_heads=2, head_dim=32)
LOST: Any = None


@pytest.mark.slow
def test_a_job_compiles_and_keeps_what_it_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSVD_HOME", str(tmp_path))
    request = CompileRequest(SMALL, ("A100 80GB", "H200"))
    emitted: list[Any] = []
    stages: list[tuple[str, float]] = []
    result = kind.KIND.run(request, LOST, lambda stage, share: stages.append((stage, share)), emitted.append)
    assert isinstance(result, CompiledCalls) and kind_of(request) is kind.KIND
    assert [row.gpu for row in result.rows] == ["A100 80GB", "H200"]
    for row in result.rows:
        assert not row.refusal and 16 <= row.registers <= 255 and row.shared_bytes > 0
        assert row.occupancy is not None and row.occupancy.warps > 0
    assert tuple(map(kind.KIND.part, emitted)) == result.rows
    assert stages[-1] == ("Compiled 2 of 2, H200", 1.0)
    assert len(list((tmp_path / "compiled").glob("*.json"))) == 2
    monkeypatch.setattr(process, "compile_calls", process.compile_calls)
    assert kind.KIND.run(request, LOST, lambda stage, share: None, emitted.append) == result


def row(name: str) -> Compiled:
    return Compiled(SMALL, name, {}, (1,), refusal="none")


def test_a_cancel_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def compile_calls(calls: Any, names: Any) -> Iterator[Compiled]:
        try:
            for name in names:
                yield row(name)
        finally:
            closed.append(True)

    monkeypatch.setattr(process, "compile_calls", compile_calls)

    def progress(stage: str, share: float) -> None:
        if share >= 0.5:
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        kind.KIND.run(CompileRequest(SMALL, ("T4", "L4")), LOST, progress, lambda part: None)
    assert closed == [True]


def test_a_process_that_dies_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        line = "import sys; sys.stdin.read(); raise ValueError('no compiler')"
        return real([command[0], "-c", line], **options)

    monkeypatch.setattr(process.subprocess, "Popen", popen)
    with pytest.raises(FlashSVDError, match="ended with code 1: ValueError: no compiler"):
        list(process.compile_calls([SMALL], ["H200"]))
