"""Measures when and where the programs of a launch run: `python -m flashsvd.onchip.trace MODEL --out FOLDER`.

A GPU of `flashsvd.gpus` is needed. The shipped kernel runs with random operands of the call's sizes; a second build of
it, with probes (`flashsvd.onchip.probe`), runs with the same operands, has to give the same output, and is timed in
turn with the first.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashsvd.errors import DeviceError, FlashSVDError, InputError
from flashsvd.gpus import Gpu, gpu_of_device
from flashsvd.models.sources import resolve, shape_of
from flashsvd.onchip.calls import KERNELS, KernelCall, calls_of
from flashsvd.onchip.sm_numbers import numbers, verdict
from flashsvd.onchip.sm_trace import Build, SmTrace, checked, folder, write_trace
from flashsvd.progress import Progress
from flashsvd.results import PlanChoice, Quantiles

if TYPE_CHECKING:
    import torch

    from flashsvd.onchip.launches import Launched

REPEATS = 50
_RUNS = 15
"""Launches that are traced; that of the median makespan is kept."""
_SECONDS = 10.0
_SLEEP_CYCLES = 1_000_000
"""Half a millisecond in which the CPU gets ahead of the GPU, so that no launch is timed as the kernel's."""
_READS = 4096


def measure(
    call: KernelCall, *, repeats: int = REPEATS, progress: Progress | None = None, command: str = ""
) -> SmTrace:
    """Traces one launch on the current GPU. Both builds find their operands in the L2 cache as far as they fit, as
    when a kernel runs again and again.

    Raises:
        DeviceError: no GPU here, or one whose multiprocessors are not described.
        InputError: this GPU does not run such a call by that kernel; the probes changed its output; the kernel cannot
            be instrumented.
    """
    import torch

    from flashsvd.measure.latency import time_engines
    from flashsvd.measure.machine import describe_machine
    from flashsvd.onchip.compiling import prepare
    from flashsvd.onchip.launches import launched
    from flashsvd.onchip.probe import probed

    report = progress or (lambda stage, share: None)
    on, device = _gpu_here()
    report(f"Compiling {KERNELS[call.kernel].title} with probes", 0.05)
    prepared = prepare(call, on)
    launch = launched(call, prepared, device)
    kernel = probed(launch.kernel)
    trace = torch.full((launch.programs, 3), -1, dtype=torch.int64, device=device)
    plain, error = _same_output(launch, kernel, trace)
    starts: dict[str, Callable[[], Any]] = {
        "plain": launch.start,
        "instrumented": lambda: launch.start(kernel, trace),
    }
    found = time_engines(
        starts,
        device,
        repeats=repeats,
        budget_seconds=_SECONDS,
        before=lambda _: torch.cuda._sleep(_SLEEP_CYCLES),
        progress=lambda share: report("Timing both builds in turn", 0.3 + 0.5 * min(share, 1.0)),
    )
    report("Tracing", 0.85)
    rows = _median_run(starts["instrumented"], trace)
    machine = describe_machine(device)
    both = [_build(one) for one in (plain, starts["instrumented"]())]
    made = SmTrace(
        call=call,
        gpu=on.name,
        machine=machine,
        sm_count=torch.cuda.get_device_properties(device).multi_processor_count,
        tiles=prepared.tiles,
        grid=launch.grid,
        warps=int(plain.metadata.num_warps),
        plain=both[0],
        instrumented=both[1],
        plain_ms=found["plain"][0],
        instrumented_ms=found["instrumented"][0],
        repeats=min(done for _, done in found.values()),
        timer_step_ns=_timer_step(device),
        error=error,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        sm=rows[:, 0].numpy().copy(),
        start_ns=(rows[:, 1] - rows[:, 1].min()).numpy().copy(),
        end_ns=(rows[:, 2] - rows[:, 1].min()).numpy().copy(),
    )
    report("Done", 1.0)
    return checked(made)


def _gpu_here() -> tuple[Gpu, torch.device]:
    import torch

    if not torch.cuda.is_available():
        raise DeviceError("no GPU here: programs can be measured on one only; a recording replays anywhere")
    device = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(device)
    on = gpu_of_device(name)
    if on is None:
        raise DeviceError(
            f"the multiprocessors of a {name} are not described in flashsvd.gpus: add them there"
        )
    return on, device


def _same_output(launch: Launched, kernel: Any, trace: torch.Tensor) -> tuple[Any, float]:
    """What Triton compiled of the plain kernel, and how far apart the outputs of both builds are.

    Raises InputError where they are further apart than the gate's limit for their dtype, or one is not finite.
    """
    import torch

    from flashsvd.kernels.gate import LIMITS, relative_error

    out = launch.out
    out.fill_(float("nan"))
    plain = launch.start()
    expected = out.clone()
    out.fill_(float("nan"))
    launch.start(kernel, trace)
    torch.cuda.synchronize(out.device)
    error, limit = relative_error(out, expected), LIMITS[out.dtype]
    if not bool(torch.isfinite(expected).all()) or not error <= limit:
        raise InputError(
            f"the build with probes gives another output: relative error {error:.3g}, at most {limit:g}"
        )
    return plain, error


def _median_run(start: Callable[[], Any], trace: torch.Tensor) -> torch.Tensor:
    """The rows of the launch with the median makespan, on the CPU. Raises InputError where a program left none."""
    import torch

    runs = []
    for _ in range(_RUNS):
        trace.fill_(-1)
        torch.cuda.synchronize(trace.device)
        start()
        torch.cuda.synchronize(trace.device)
        rows = trace.cpu()
        if int(rows.min()) < 0:
            missing = int((rows < 0).any(dim=1).sum())
            raise InputError(
                f"{missing} of {len(rows)} programs left no trace: the probes do not fit this kernel"
            )
        runs.append(rows)
    runs.sort(key=lambda rows: int(rows[:, 2].max() - rows[:, 1].min()))
    return runs[len(runs) // 2]


def _build(compiled: Any) -> Build:
    # The driver counts what is spilled in words of 4 bytes.
    return Build(int(compiled.n_regs), 4 * int(compiled.n_spills), int(compiled.metadata.shared))


def _timer_step(device: torch.device) -> int:
    """Nanoseconds between two values of the timer that follow each other."""
    import torch

    from flashsvd.onchip.probe import timer_reads

    reads = torch.empty(_READS, dtype=torch.int64, device=device)
    timer_reads[(1,)](reads, COUNT=_READS, num_warps=1)
    steps = reads.diff()
    return int(steps[steps > 0].min())


def calls_named(
    model: str, choice: PlanChoice, batch: int, seq: int, dtype: str
) -> dict[str, KernelCall | str]:
    """Every kernel for the first layer of a planned model: its call, or in one line why it has none.

    Raises InputError for a model whose shape is not known without loading it.
    """
    shape = shape_of(resolve(model))
    if shape is None:
        raise InputError(f"the shape of {model} is not known without loading it: name a preset or a folder")
    return calls_of(choice.resolve(shape), 0, batch, seq, dtype)


def row(trace: SmTrace) -> str:
    """A trace in one line of a table."""
    found = numbers(trace)
    words, predicted = verdict(trace, found)
    shipped = trace.predicted(trace.plain).blocks
    return (
        f"{trace.call.kernel:18} {found.programs:6d} {shipped:5d} {predicted:5d} {found.seen:4d}  {words:20} "
        f"{_us(trace.plain_ms):>22} {_us(trace.instrumented_ms):>22} {100 * trace.overhead:+6.1f}% "
        f"{found.makespan_ns / 1e3:8.1f} {100 * found.busy:5.1f}% {found.tail_ns / 1e3:7.1f} "
        f"{trace.plain.registers:4d} {trace.instrumented.registers:4d} {trace.timer_step_ns:4d} {trace.error:.1g}"
    )


HEAD = (
    f"{'kernel':18} {'grid':>6} {'plain':>5} {'pred.':>5} {'seen':>4}  {'per multiprocessor':20} "
    f"{'plain us (20-80 %)':>22} {'with probes us':>22} {'cost':>7} "
    f"{'span us':>8} {'busy':>6} {'tail us':>7} {'regs':>4} {'+pr.':>4} {'step':>4} error"
)


def _us(times: Quantiles) -> str:
    return f"{1e3 * times.p50:.1f} ({1e3 * times.p20:.1f}-{1e3 * times.p80:.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Traces the kernels of a model's first layer on this GPU, writes a file of each and prints a table."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m flashsvd.onchip.trace", description=main.__doc__)
    parser.add_argument("model", help="a bundled model, a preset such as bert-base, or a folder")
    ranks = parser.add_mutually_exclusive_group()
    ranks.add_argument("--keep", type=float, help="the same share of parameters everywhere (0.5)")
    ranks.add_argument("--ranks", help="of heads, feed-forward and output, such as 40,240,240")
    parser.add_argument(
        "--kernel", action="append", choices=tuple(KERNELS), help="all that there are unless given"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp16", "fp32"))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=folder(), help="folder of the recordings")
    options = parser.parse_args(given)
    # A trace is of the fixed choice of tiles, which ships.
    os.environ.pop("FLASHSVD_AUTOTUNE", None)
    try:
        calls = calls_named(options.model, _choice(options), options.batch, options.seq, options.dtype)
        on, _ = _gpu_here()
    except FlashSVDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = 0
    print(HEAD, flush=True)
    for name in options.kernel or tuple(calls):
        call = calls[name]
        refusal = call if isinstance(call, str) else _refusal(call, on)
        if isinstance(call, str) or refusal:
            print(f"{name:18} not run: {refusal}", flush=True)
            continue
        command = shlex.join(["python", "-m", "flashsvd.onchip.trace", *_without_out(given)])
        try:
            trace = measure(call, repeats=options.repeats, command=command)
            path = options.out / f"{_file_name(options.model, trace)}.parquet"
            write_trace(path, trace)
        except Exception as error:
            # One kernel that fails costs none of the others.
            failed += 1
            first = next(iter(str(error).strip().splitlines()), "")
            print(f"{name:18} failed: {type(error).__name__}: {first}", flush=True)
            continue
        print(row(trace), flush=True)
    return 1 if failed else 0


def _refusal(call: KernelCall, on: Gpu) -> str:
    """Why a GPU does not run a call by its kernel; empty where it does."""
    from flashsvd.onchip.compiling import prepare

    try:
        prepare(call, on)
    except InputError as error:
        return str(error)
    return ""


def _choice(options: argparse.Namespace) -> PlanChoice:
    if options.ranks is None:
        return PlanChoice(keep=0.5 if options.keep is None else options.keep)
    try:
        heads, feed_forward, output = map(int, options.ranks.split(","))
    except ValueError:
        raise InputError(f"expected three ranks such as 40,240,240, got {options.ranks!r}") from None
    return PlanChoice(ranks=(heads, feed_forward, output))


def _file_name(model: str, trace: SmTrace) -> str:
    call = trace.call
    gpu_name = trace.gpu.lower().replace(" ", "-")
    ranks = "-".join(f"r{rank}" for rank in dict.fromkeys((call.rank, call.rank_out)) if rank)
    parts = (gpu_name, Path(model).name, call.kernel, call.dtype, ranks, f"{call.batch}x{call.seq}")
    return "-".join(filter(None, parts))


def _without_out(given: Sequence[str]) -> list[str]:
    """The arguments but where files go, which is of one machine only."""
    kept, skip = [], False
    for one in given:
        if skip or one == "--out" or one.startswith("--out="):
            skip = one == "--out"
            continue
        kept.append(one)
    return kept


if __name__ == "__main__":
    sys.exit(main())
