"""Every kernel a thousand times, alone and on a busy GPU, and under NVIDIA's sanitizer: one result, no growth."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sanitize
import torch
import turns
from call_lists import ENDURANCE, SANITIZED
from kernel_calls import KernelCall, floats_mapped, mapped, triton_tiles
from kernel_cases import DTYPES
from side_load import SideLoad, count_different

from flashsvd.kernels.ffn.hopper import hopper_reads, hopper_tiles
from flashsvd.kernels.ffn.operands import FfnOperands
from flashsvd.kernels.ffn.plan import kernel_takes
from flashsvd.kernels.ffn_block.hopper import block_tiles
from flashsvd.kernels.ffn_block.operands import BlockOperands
from flashsvd.kernels.gate import assert_close
from flashsvd.kernels.tma import describable

RUNS = 1000


def requested_peak(work: Callable[[], int]) -> tuple[int, int]:
    """What `work` returns, and the most bytes asked for at once meanwhile: rounding to blocks does not count."""
    torch.cuda.reset_peak_memory_stats()
    result = work()
    return result, torch.cuda.memory_stats()["requested_bytes.all.peak"]


@pytest.mark.gpu
@pytest.mark.parametrize("busy", [False, True], ids=["alone", "busy"])
@pytest.mark.parametrize("case", ENDURANCE, ids=lambda case: case.id)
def test_a_thousand_runs_are_one_run_and_keep_no_memory(case: KernelCall, busy: bool) -> None:
    if not case.runs_on("cuda"):
        pytest.skip("needs compute capability 9")
    given = mapped(case.inputs(torch.bfloat16), torch.Tensor.cuda)

    def call() -> torch.Tensor:
        return case.run(given, "triton", None)

    first = call()
    torch.cuda.synchronize()
    assert_close(first, *case.expected(given), case.id)
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(SideLoad()).step if busy else None
        assert count_different(call, first, 20, before) == 0
        # Nothing but `first` and the inputs is alive here and below, so the two are to be equal.
        held = torch.cuda.memory_allocated()
        _, usual = requested_peak(lambda: count_different(call, first, 20, before))
        different, peak = requested_peak(lambda: count_different(call, first, RUNS, before))
        assert different == 0, f"{different} of {RUNS} runs differ from the first"
        assert torch.cuda.memory_allocated() == held
        assert peak <= usual


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_processes_that_take_turns_change_nothing() -> None:
    program = [sys.executable, str(Path(turns.__file__)), "200"]
    started = [subprocess.Popen(program, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * 6, said


def sanitizer(tool: str, *program: str) -> subprocess.CompletedProcess[str]:
    """`program`, arguments of Python, watched by a tool of compute-sanitizer."""
    # Only Python itself: Triton's ptxas and C compiler hold no CUDA. API errors that torch asks for are no finding.
    options = ["--tool", tool, "--target-processes", "application-only", "--report-api-errors", "no"]
    return subprocess.run(
        ["compute-sanitizer", *options, sys.executable, *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


CLEAN = {"memcheck": "ERROR SUMMARY: 0 errors", "racecheck": "RACECHECK SUMMARY: 0 hazards"}


@pytest.fixture(scope="module")
def attaches() -> Callable[[str], None]:
    """Skips where the tool is not there or cannot watch this GPU, as on some virtual machines."""
    refusals: dict[str, str] = {}

    def check(tool: str) -> None:
        if shutil.which("compute-sanitizer") is None:
            pytest.skip("compute-sanitizer is not on the PATH")
        if tool not in refusals:
            tried = sanitizer(tool, "-c", "import torch; torch.ones(9, device='cuda').sum().item()")
            clean = tried.returncode == 0 and CLEAN[tool] in tried.stdout
            refusals[tool] = "" if clean else tried.stdout.strip()[-400:]
        if refusals[tool]:
            pytest.skip(f"compute-sanitizer cannot watch this GPU: {refusals[tool]}")

    return check


@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kernel", sanitize.KERNELS)
@pytest.mark.parametrize("tool", list(CLEAN))
def test_the_sanitizer_finds_nothing(tool: str, kernel: str, attaches: Callable[[str], None]) -> None:
    attaches(tool)
    done = sanitizer(tool, str(Path(sanitize.__file__)), kernel)
    assert done.returncode == 0 and CLEAN[tool] in done.stdout, done.stdout[-6000:]


def test_calls_have_names_of_their_own() -> None:
    for calls in (ENDURANCE, SANITIZED):
        assert len({call.id for call in calls}) == len(calls)


@pytest.mark.parametrize("kernel", sanitize.KERNELS)
def test_the_sanitized_calls_pass_in_plain_torch(kernel: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Not bf16: torch 2.13's own product on a CPU reads past rows of 59 and makes NaN of the guard behind them.
    assert sanitize.run([kernel], "cpu", "torch", DTYPES) == 0, capsys.readouterr().out


@pytest.mark.parametrize("call", [*ENDURANCE, *SANITIZED], ids=lambda call: call.id)
def test_the_kernel_named_takes_its_call(call: KernelCall) -> None:
    if not call.kernel.startswith(("ffn", "glu")) or call.kernel.endswith("chunked"):
        return
    for dtype in call.dtypes:
        given: FfnOperands | BlockOperands = call.inputs(dtype)
        if isinstance(given, BlockOperands):
            fenced: BlockOperands = floats_mapped(given, call.fence)
            assert all(
                describable(matrix) for matrix in (fenced.x, fenced.v1, fenced.u1, fenced.v2, fenced.u2)
            )
            assert block_tiles(given.rows, given.hidden, given.rank_in, given.rank_out)
        elif call.needs_hopper:
            assert hopper_reads(floats_mapped(given, call.fence))
            assert hopper_tiles(given.rows, given.rank_in, given.rank_out)
        else:
            wide = floats_mapped(given, call.fence).wide_loads
            assert kernel_takes(triton_tiles(given, 90), given.rank_out, given.out_width, dtype, wide)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_bit_in_one_run_is_seen(dtype: torch.dtype) -> None:
    first = torch.zeros(3, 4, dtype=dtype)
    results = [first.clone() for _ in range(5)]
    assert count_different(iter(results).__next__, first, 5) == 0
    results[3][2, 1] = -0.0
    assert count_different(iter(results).__next__, first, 5) == 1


def test_a_wrong_result_and_a_write_outside_are_seen() -> None:
    call = next(call for call in SANITIZED if call.kernel == "norm")
    assert sanitize.verdict(call, torch.float32, "cpu", "torch") is None

    def broken(change: Callable[[torch.Tensor], torch.Tensor]) -> str | None:
        def run(given: object, backend: str | None, out: torch.Tensor | None) -> torch.Tensor:
            made = call.run(given, backend, out)
            if out is not None:
                change(out)
            return made

        return sanitize.verdict(KernelCall("", "", call.inputs, run), torch.float32, "cpu", "torch")

    assert "above the limit" in (broken(lambda out: out.mul_(1.1)) or "")
    assert "outside" in (broken(lambda out: out._base[0].zero_()) or "")  # type: ignore[index]
