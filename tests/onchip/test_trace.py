"""Measuring programs: the table and the refusals anywhere, the measurement itself on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flashsvd.errors import DeviceError, InputError
from flashsvd.jobs.kinds import kind_of
from flashsvd.onchip import trace as module
from flashsvd.onchip.calls import KernelCall
from flashsvd.onchip.sm_numbers import numbers, verdict
from flashsvd.onchip.sm_trace import read_trace, write_trace
from flashsvd.onchip.trace import calls_named, main, measure, row
from flashsvd.onchip.trace_request import TraceRequest
from flashsvd.results import PlanChoice
from tests.onchip.probe_calls import CALLS
from tests.onchip.sm_samples import CALL, trace


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeviceError, match="no GPU here"):
        measure(CALL)
    assert main(["bert-base", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no GPU here") and not list(tmp_path.iterdir())
    kind = kind_of(TraceRequest(CALL))
    with pytest.raises(DeviceError, match="no GPU here"):
        kind.run(TraceRequest(CALL), None, lambda stage, share: None, lambda part: None)  # type: ignore[arg-type]


def test_a_models_calls_and_their_refusals() -> None:
    calls = calls_named("bert-base", PlanChoice(ranks=(40, 240, 240)), 32, 512, "bf16")
    found = calls["ffn"]
    assert isinstance(found, KernelCall) and (found.rank, found.rank_out) == (240, 240)
    assert calls["step"] == "only decoders take steps of one token"
    with pytest.raises(InputError, match="three ranks"):
        module._choice(module.argparse.Namespace(ranks="40,240", keep=None))


def test_a_run_writes_what_it_traced_and_says_what_it_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flashsvd.gpus import gpu

    def measured(call: KernelCall, *, repeats: int, command: str) -> object:
        if call.kernel == "attention":
            raise RuntimeError("the driver\nsays no")
        return trace(528, at_once=2, call=call, command=command, repeats=repeats)

    monkeypatch.setattr(module, "measure", measured)
    monkeypatch.setattr(module, "_gpu_here", lambda: (gpu("H200"), None))
    asked = ["bert-base", "--ranks", "40,240,240", "--out", str(tmp_path / "new"), "--repeats", "20"]
    assert main(asked) == 1, "one of them failed"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and lines[0].split()[0] == "kernel"
    said = {line.split()[0]: line for line in lines[1:]}
    assert "not run: only decoders" in said["step"] and "not run: runs in chunks" in said["ffn_v2"]
    assert said["attention"].endswith("failed: RuntimeError: the driver")
    assert "as predicted" in said["ffn"] and "88.1 (87.9-88.4)" in said["ffn"] and "+0.9%" in said["ffn"]
    names = {path.stem for path in (tmp_path / "new").iterdir()}
    assert names == {
        "h200-bert-base-ffn-bf16-r240-32x512",
        "h200-bert-base-ffn_hopper-bf16-r240-32x512",
        "h200-bert-base-rank_space-bf16-r40-32x512",
        "h200-bert-base-rank_space_hopper-bf16-r40-32x512",
    }
    read = read_trace(tmp_path / "new" / "h200-bert-base-ffn-bf16-r240-32x512.parquet")
    assert read.command == "python -m flashsvd.onchip.trace bert-base --ranks 40,240,240 --repeats 20"
    assert row(read) == said["ffn"]


class Stand:
    """A kernel and its instrumented build, on a CPU: programs of 64 ns, two on each multiprocessor at a time."""

    def __init__(self, wrong: float = 0.0, silent: bool = False) -> None:
        self.wrong, self.silent = wrong, silent

    def __getitem__(self, grid: tuple[int, ...]) -> object:
        def start(*arguments: torch.Tensor) -> object:
            *ahead, out = arguments
            out.copy_(torch.linspace(1, 2, out.numel()).reshape(out.shape) * (1 + self.wrong * bool(ahead)))
            for rows_of in ahead:
                program = torch.arange(len(rows_of))
                begin = 10_000 + 64 * (program // 264)
                rows = torch.stack([program % 132, begin, begin + 64], dim=1)
                rows_of.copy_(torch.full_like(rows, -1) if self.silent else rows)
            metadata = SimpleNamespace(num_warps=4, shared=100 << 10)
            return SimpleNamespace(n_regs=128 + 2 * len(ahead), n_spills=3, metadata=metadata)

        return start


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stand], None]:
    """A machine whose GPU is a CPU."""
    from flashsvd.gpus import gpu
    from flashsvd.onchip import launches, probe

    def build(kernel: Stand) -> None:
        def launched(*_: object) -> launches.Launched:
            out = torch.zeros(4, 8)
            return launches.Launched(kernel, (528,), (out,), {}, out, None)

        monkeypatch.setattr(launches, "launched", launched)
        monkeypatch.setattr(probe, "probed", lambda shipped: shipped)

    def reads(out: torch.Tensor, **_: int) -> None:
        out.copy_(torch.arange(len(out)) // 3 * 32)

    cpu = torch.device("cpu")
    monkeypatch.setattr(module, "_gpu_here", lambda: (gpu("H200"), cpu))
    monkeypatch.setattr(probe, "timer_reads", {(1,): reads})
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    count = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: count)
    return build


def test_what_is_measured_is_in_the_trace(bench: Callable[[Stand], None]) -> None:
    bench(Stand())
    stages: list[str] = []
    made = measure(CALL, repeats=5, progress=lambda stage, share: stages.append(stage), command="mine")
    assert (made.gpu, made.sm_count, made.grid, made.warps, made.command) == ("H200", 132, (528,), 4, "mine")
    assert (made.plain.registers, made.instrumented.registers, made.plain.spill_bytes) == (128, 130, 12)
    assert made.timer_step_ns == 32 and made.error == 0 and made.repeats == 5
    found = numbers(made)
    assert (found.makespan_ns, found.seen, found.busy) == (128, 2, 1.0)
    assert verdict(made, found) == ("as predicted", 2)
    assert stages[0] == "Compiling FFN v1 with probes" and stages[-1] == "Done"


def test_another_output_is_not_recorded(bench: Callable[[Stand], None]) -> None:
    bench(Stand(wrong=1e-6))
    assert 0 < measure(CALL, repeats=3).error < 1e-5
    bench(Stand(wrong=1e-3))
    with pytest.raises(InputError, match=r"gives another output: relative error 0\.001"):
        measure(CALL, repeats=3)
    bench(Stand(wrong=float("nan")))
    with pytest.raises(InputError, match="relative error inf"):
        measure(CALL, repeats=3)


def test_programs_without_a_trace_are_told(bench: Callable[[Stand], None]) -> None:
    bench(Stand(silent=True))
    with pytest.raises(InputError, match="528 of 528 programs left no trace"):
        measure(CALL, repeats=3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_every_kernel_on_this_gpu(name: str, tmp_path: Path) -> None:
    try:
        made = measure(CALLS[name], repeats=20)
    except InputError as error:
        if "compute capability" in str(error) or "cuBLAS" in str(error):
            pytest.skip(str(error))
        raise
    found = numbers(made)
    print(row(made))
    assert made.sm_count == torch.cuda.get_device_properties(0).multi_processor_count
    assert made.sm.min() >= 0 and made.sm.max() < made.sm_count
    assert (made.end_ns > made.start_ns).all() and 1 <= made.timer_step_ns <= 2000
    words, predicted = verdict(made, found)
    assert words != "more than predicted" and 1 <= found.seen <= predicted
    if found.programs >= predicted * made.sm_count:
        assert found.used == made.sm_count
        # Programs of a few microseconds may be done before their neighbours have started.
        assert found.seen == predicted or found.program_ns < 5000
    # Launching and ending take a few microseconds beside the programs.
    assert found.makespan_ns / 1e6 < 1.5 * made.instrumented_ms.p80
    # -11 % (a register fewer, so a program more on each multiprocessor) to +5 % on an H200.
    assert -0.15 < made.overhead < 0.15
    write_trace(tmp_path / "one.parquet", made)
    assert read_trace(tmp_path / "one.parquet").call == CALLS[name]
