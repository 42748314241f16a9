"""The feed-forward op: every backend against fp64, the odd shapes, and bugs that must not pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    CPU_BACKENDS,
    DTYPES,
    FFN_CASES,
    GPU_DTYPES,
    FfnCase,
    ffn_inputs,
    ffn_reference,
    guarded,
    skip_without_interpreter,
)

from flashsvd.kernels import flash_svd_ffn
from flashsvd.kernels.gate import assert_close, check, relative_error
from flashsvd.kernels.tiles import ffn_stream_tiles

LONG = FfnCase(1025, 2300, 40, 59)


def run(inputs: tuple, case: FfnCase, backend: str) -> torch.Tensor:
    return flash_svd_ffn(*inputs, activation=case.activation, backend=backend)


@pytest.mark.parametrize("case", [*FFN_CASES, LONG], ids=lambda case: case.name)
def test_definition_is_the_formula(case: FfnCase) -> None:
    inputs = ffn_inputs(case, torch.float64)
    assert relative_error(run(inputs, case, "naive"), ffn_reference(*inputs, case.activation)) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("case", FFN_CASES, ids=lambda case: case.name)
def test_passes_the_gate(case: FfnCase, backend: str, dtype: torch.dtype) -> None:
    skip_without_interpreter(backend)
    inputs = ffn_inputs(case, dtype)
    out = run(tuple(x if x is None else guarded(x) for x in inputs), case, backend)
    assert_close(out, ffn_reference(*inputs, case.activation), run(inputs, case, "naive"), case.name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stream_passes_the_gate_over_many_tiles(dtype: torch.dtype) -> None:
    inputs = ffn_inputs(LONG, dtype)
    assert_close(run(inputs, LONG, "torch"), ffn_reference(*inputs, "gelu"), run(inputs, LONG, "naive"))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_keeps_leading_dimensions_and_takes_slices(backend: str) -> None:
    skip_without_interpreter(backend)
    case = FfnCase(30, 64, 7, 16)
    p, *rest = ffn_inputs(case, torch.float32)
    packed = torch.cat([p, p + 1], -1).view(2, 15, 14)
    out = run((packed[..., :7], *rest), case, backend)
    assert out.shape == (2, 15, 16)
    assert_close(
        out.flatten(0, 1), ffn_reference(p, *rest, "gelu"), run((p, *rest), case, "naive"), "slice of packed"
    )


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_no_rows_give_no_rows(backend: str) -> None:
    skip_without_interpreter(backend)
    case = FfnCase(0, 64, 7, 16)
    assert run(ffn_inputs(case, torch.float32), case, backend).shape == (0, 16)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_writes_nothing_outside_its_output(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_interpreter(backend)
    case = FfnCase(17, 70, 7, 59)
    inputs = ffn_inputs(case, torch.float32)
    allocations: list[torch.Tensor] = []

    def fenced(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        size = torch.Size(shape).numel()
        allocations.append(torch.full((size + 8192,), -7.0, dtype=dtype, device=device))
        return allocations[-1][4096 : 4096 + size].view(shape)

    monkeypatch.setattr(torch, "empty", fenced)
    run(inputs, case, backend)
    monkeypatch.undo()
    assert allocations
    for buffer in allocations:
        assert (buffer[:4096] == -7).all() and (buffer[-4096:] == -7).all()


def forget_the_bias(p, u1, b1, v2):
    return p, u1, None, v2


def skip_the_last_rank_tile(p, u1, b1, v2):
    return p[:, :32].contiguous(), u1[:, :32], b1, v2


def skip_the_last_rank(p, u1, b1, v2):
    return p[:, :-1].contiguous(), u1[:, :-1], b1, v2


def drop_the_last_tile_of_the_width(p, u1, b1, v2):
    return p, u1[:-32], b1[:-32], v2[:, :-32]


def drop_the_last_column_of_the_width(p, u1, b1, v2):
    return p, u1[:-1], b1[:-1], v2[:, :-1]


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize(
    "bug",
    [
        forget_the_bias,
        skip_the_last_rank_tile,
        skip_the_last_rank,
        drop_the_last_tile_of_the_width,
        drop_the_last_column_of_the_width,
    ],
)
def test_the_gate_catches(bug, dtype: torch.dtype) -> None:
    case = FfnCase(97, 1024, 40, 40)
    inputs = ffn_inputs(case, dtype)
    reference, baseline = ffn_reference(*inputs, "gelu"), run(inputs, case, "naive")
    assert check(run(inputs, case, "torch"), reference, baseline).passed
    assert not check(run(bug(*inputs), case, "torch"), reference, baseline).passed


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_the_gate_tells_the_two_gelus_apart(activation: str) -> None:
    case = FfnCase(97, 256, 40, 40, activation)
    inputs = ffn_inputs(case, torch.float32)
    other = "gelu" if activation == "gelu_tanh" else "gelu_tanh"
    reference, baseline = ffn_reference(*inputs, activation), run(inputs, case, "naive")
    assert not check(flash_svd_ffn(*inputs, activation=other, backend="torch"), reference, baseline).passed


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(2, 60), cut=st.integers(1, 59), seed=st.integers(0, 999))
def test_rows_are_independent(rows: int, cut: int, seed: int) -> None:
    case = FfnCase(rows, 70, 7, 16)
    p, *rest = ffn_inputs(case, torch.float64, seed)
    cut = min(cut, rows - 1)
    parts = torch.cat([run((part, *rest), case, "torch") for part in (p[:cut], p[cut:])])
    assert relative_error(parts, run((p, *rest), case, "torch")) < 1e-13


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 69), seed=st.integers(0, 999))
def test_the_width_may_be_split(cut: int, seed: int) -> None:
    case = FfnCase(9, 70, 7, 16)
    p, u1, b1, v2 = ffn_inputs(case, torch.float64, seed)
    left = run((p, u1[:cut], b1[:cut], v2[:, :cut]), case, "torch")
    right = run((p, u1[cut:], b1[cut:], v2[:, cut:]), case, "torch")
    assert relative_error(left + right, run((p, u1, b1, v2), case, "torch")) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, width", [(1, 1), (2048, 1024), (16384, 3072), (100, 11008)])
def test_stream_tiles_fit_their_budget(rows: int, width: int, dtype: torch.dtype) -> None:
    tiles = ffn_stream_tiles(rows, width, dtype)
    assert tiles.workspace_bytes <= 1.5 * 2**20
    assert tiles.block_m <= rows and tiles.block_d <= width


def test_stream_workspace_is_small(peak_extra_bytes) -> None:
    case = FfnCase(2048, 1024, 96, 96)
    inputs = ffn_inputs(case, torch.float32)
    assert peak_extra_bytes(lambda: run(inputs, case, "torch")) <= 1.5 * 2**20
    assert peak_extra_bytes(lambda: run(inputs, case, "naive")) > 8 * 2**20


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("case", [*FFN_CASES, LONG, FfnCase(1025, 512, 768, 768)], ids=lambda case: case.name)
def test_compiled_kernel_passes_the_gate(case: FfnCase, dtype: torch.dtype) -> None:
    inputs = ffn_inputs(case, dtype)
    on_gpu = tuple(x if x is None else guarded(x.cuda()) for x in inputs)
    reference = ffn_reference(*inputs, case.activation)
    assert_close(run(on_gpu, case, "triton"), reference, run(inputs, case, "naive"), case.name)


@pytest.mark.gpu
def test_launches_repeat_bit_for_bit_and_keep_no_memory() -> None:
    case = FfnCase(1025, 512, 240, 240)
    inputs = tuple(x.cuda() for x in ffn_inputs(case, torch.bfloat16))
    first = run(inputs, case, "triton")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        assert torch.equal(run(inputs, case, "triton"), first)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
