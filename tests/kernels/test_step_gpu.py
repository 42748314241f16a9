"""Steps on a GPU: the definition's results in every dtype, the same bits from a graph, and nothing allocated."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import GPU_DTYPES
from side_load import SideLoad, count_different
from step_cases import CASES, StepCase, mapped, results, step_program

from flashsvd.kernels.backend import gpu_of
from flashsvd.kernels.gate import BASELINE_FACTOR, assert_close, relative_error
from flashsvd.kernels.starter import Launch
from flashsvd.kernels.step import MOST_ROWS, Heads, Program, launch, prepare_step

pytestmark = pytest.mark.gpu

SEVEN_B: dict[str, Any] = {
    "hidden": 4096,
    "width": 11008,
    "heads": 32,
    "kv_heads": 32,
    "head_dim": 128,
    "ranks": (1024,),
    "place": 517,
    "capacity": 600,
    "vocabulary": 1000,
}
LARGE = (
    StepCase("Llama-2-7B", **SEVEN_B, shares=8),
    StepCase("Llama-2-7B, ranks per head", **{**SEVEN_B, "ranks": (64,), "whole": False}, shares=8),
    StepCase("Llama-2-7B, 16 sequences", **SEVEN_B, batch=16, shares=4, padded=True),
    StepCase("Llama-2-7B, 64 sequences", **{**SEVEN_B, "place": 90, "capacity": 91}, batch=64, shares=4),
    StepCase("Llama-3-8B", **{**SEVEN_B, "kv_heads": 8, "width": 14336}, shares=8),
    StepCase("Llama-3-8B, a window", **{**SEVEN_B, "kv_heads": 8}, batch=3, shares=4, window=100, padded=True),
    StepCase("Qwen2.5-0.5B", hidden=896, width=4864, heads=14, head_dim=64, ranks=(320,), bias=True, shares=8,
             place=700, capacity=701, vocabulary=3001),
    StepCase("Qwen3, norms of heads", hidden=1024, width=3072, heads=16, kv_heads=8, head_dim=128, ranks=(400,),
             head_norm=True, batch=4, shares=4, place=300, capacity=310),
    StepCase("Qwen2.5-0.5B, 8 sequences", hidden=896, width=4864, heads=14, head_dim=64, ranks=(200,), bias=True,
             batch=8, shares=4, place=300, capacity=301, vocabulary=3001, padded=True),
    StepCase("GPT-2", hidden=768, width=3072, heads=12, kv_heads=12, head_dim=64, ranks=(40,), whole=False, gated=False,
             layer_norm=True, rotary=False, bias=True, activation="gelu_tanh", batch=2, shares=4, place=900,
             capacity=1024),
    StepCase("values in rank space", **{**SEVEN_B, "value_rank": 64}, shares=8),
)  # fmt: skip
every_case = pytest.mark.parametrize("case", [*CASES, *LARGE], ids=lambda case: case.name)
every_large_case = pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)


made = functools.lru_cache(maxsize=1)(step_program)
"""Drawing the tensors of a large case takes seconds."""


def on_gpu(case: StepCase, dtype: torch.dtype, run_in: torch.dtype | None = None) -> Program:
    """A program of its own, in another dtype than its tensors were rounded to where `run_in` is given."""
    return mapped(made(case, dtype), run_in, "cuda")


def all_results(program: Program) -> torch.Tensor:
    """Everything that a step leaves, in one tensor."""
    return torch.cat([found.float().flatten() for found in results(program).values()])


def poisoned(program: Program) -> None:
    """What a step is to write holds NaN."""
    for step in program.instructions:
        if not isinstance(step, Heads):
            step.out.fill_(float("nan"))


def assert_is_the_definition(case: StepCase, dtype: torch.dtype, run: Callable[[Program], None]) -> None:
    """Everything that `run` leaves of a step, against the definition in fp64 and in the dtype."""
    wide, plain = on_gpu(case, dtype, torch.float64), on_gpu(case, dtype)
    for program in (wide, plain):
        prepare_step(program, "naive")()
    program = on_gpu(case, dtype)
    run(program)
    expected, baseline = results(wide), results(plain)
    for name, found in results(program).items():
        if dtype == torch.float32:
            assert_close(found, expected[name], baseline[name], name)
            continue
        # Roundings of a whole program add up to more than one op may have.
        error, usual = (relative_error(one[name], expected[name]) for one in (results(program), baseline))
        assert error <= BASELINE_FACTOR * usual, f"{name}: {error:.3g} is above twice {usual:.3g}"


@every_case
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_the_kernels_are_the_definition(case: StepCase, dtype: torch.dtype) -> None:
    assert_is_the_definition(case, dtype, lambda program: prepare_step(program, "triton")())


@pytest.mark.parametrize(
    "case", [case for case in (*CASES, *LARGE) if 1 < case.batch < 17], ids=lambda case: case.name
)
def test_the_kernels_of_older_gpus_are_the_definition(case: StepCase) -> None:
    """Before compute capability 9 several sequences go by another kernel, and no kernel begins early."""

    def run(program: Program) -> None:
        chain = launch.Chain(program, gpu_of(program.tokens.device)._replace(major=8))
        assert not chain.chained
        chain()

    assert_is_the_definition(case, torch.bfloat16, run)


@pytest.mark.parametrize("batch", [2, 3, 8, 15, 16, 17, 33, MOST_ROWS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_batch_runs(batch: int, dtype: torch.dtype) -> None:
    """Also with narrow heads, whose tiles are long."""
    case = StepCase("batch", batch=batch, shares=4, bias=True, padded=True)
    wide, program = on_gpu(case, dtype, torch.float64), on_gpu(case, dtype)
    prepare_step(wide, "naive")()
    prepare_step(program, "triton")()
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    assert relative_error(all_results(program), all_results(wide)) < limit


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """Replays what `run` does, and holds on to the memory that it works in."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay(_: object = run) -> None:
        graph.replay()

    return replay


@every_case
def test_a_graph_gives_the_same_bits_50_times(case: StepCase) -> None:
    program = on_gpu(case, torch.bfloat16)
    chain: Any = prepare_step(program, "triton")
    chain()
    first = all_results(program)
    replay = captured(chain)

    def replayed() -> torch.Tensor:
        poisoned(program)
        replay()
        return all_results(program)

    assert first.isfinite().all() and count_different(replayed, first, 50) == 0
    assert not chain.arrived.any()


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "busy"])
@every_large_case
def test_a_thousand_steps_are_one_step(case: StepCase, busy: bool) -> None:
    """Kernels begin before those before them have ended, on a GPU that may have other work: nothing is read early."""
    program = on_gpu(case, torch.bfloat16)
    replay = captured(prepare_step(program, "triton"))
    replay()
    first = all_results(program)

    def replayed() -> torch.Tensor:
        replay()
        return all_results(program)

    with contextlib.ExitStack() as stack:
        before = stack.enter_context(SideLoad()).step if busy else None
        assert count_different(replayed, first, 1000, before) == 0


@every_large_case
def test_kernels_that_wait_for_one_another_give_the_same_bits(
    case: StepCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain launches of the same kernels."""
    chained, plain = (on_gpu(case, torch.bfloat16) for _ in range(2))
    prepare_step(chained, "triton")()

    def without_chain(
        kernel: Any, grid: Any, tensors: Any, fixed: Any, device: Any, **options: Any
    ) -> Launch:
        options.pop("launch_pdl", None)
        return Launch(kernel, grid, tensors, {**fixed, "CHAINED": False}, device, **options)

    monkeypatch.setattr(launch, "Launch", without_chain)
    prepare_step(plain, "triton")()
    assert torch.equal(all_results(chained), all_results(plain))


def test_a_step_allocates_nothing() -> None:
    program = on_gpu(LARGE[0], torch.bfloat16)
    run = prepare_step(program, "triton")
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() == held == torch.cuda.memory_allocated()


def test_a_step_does_not_wait_for_the_gpu() -> None:
    program = on_gpu(CASES[0], torch.bfloat16)
    run = prepare_step(program, "triton")
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
