"""The gated form, the second version and silu: every backend against fp64, given outputs, and bugs that must not
pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ffn_cases import ACTIVATIONS, FORMS, GATED, Form, fenced, mapped, operands, reference, run
from kernel_cases import CPU_BACKENDS, DTYPES, GPU_DTYPES, guarded, skip_without_interpreter

from flashsvd.kernels.ffn.naive import naive_ffn
from flashsvd.kernels.ffn.operands import FfnOperands
from flashsvd.kernels.ffn.stream import stream_ffn
from flashsvd.kernels.gate import assert_close, check, relative_error
from flashsvd.kernels.tiles import ffn_stream_tiles


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_definition_is_the_formula(form: Form) -> None:
    ffn = operands(form, torch.float64)
    assert relative_error(run(ffn, "naive"), reference(ffn)) < 1e-13


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_passes_the_gate(form: Form, backend: str, dtype: torch.dtype) -> None:
    skip_without_interpreter(backend)
    ffn = operands(form, dtype)
    assert_close(run(fenced(ffn), backend), reference(ffn), run(ffn, "naive"), form.name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_activation_in_every_form(backend: str, activation: str, dtype: torch.dtype) -> None:
    skip_without_interpreter(backend)
    for form in (
        Form(20, 97, 40, 24, activation),
        Form(20, 97, 40, 24, activation, rank_up=16),
        Form(20, 97, 40, 24, activation, out_width=40),
    ):
        ffn = operands(form, dtype)
        assert_close(run(ffn, backend), reference(ffn), run(ffn, "naive"), form.name)


@pytest.mark.parametrize(
    "form", [Form(2100, 2300, 40, 59, "silu", 30), Form(1025, 2300, 40, 59, out_width=70)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stream_passes_the_gate_over_many_tiles(form: Form, dtype: torch.dtype) -> None:
    ffn = operands(form, dtype)
    assert_close(run(ffn, "torch"), reference(ffn), run(ffn, "naive"), form.name)


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
@pytest.mark.parametrize("form", [FORMS[2], GATED[2], FORMS[-4]], ids=lambda form: form.name)
def test_writes_to_the_output_given_and_nowhere_else(form: Form, backend: str) -> None:
    skip_without_interpreter(backend)
    ffn = operands(form, torch.float32)
    expected = run(ffn, backend)
    buffer = torch.full((form.rows + 2, expected.shape[1] + 5), -7.0)
    out = buffer[1:-1, 2:-3]
    assert run(ffn, backend, out) is out
    assert torch.equal(out, expected)
    buffer[1:-1, 2:-3] = -7
    assert (buffer == -7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
@pytest.mark.parametrize(
    "form",
    [Form(70, 1100, 40, 30), Form(70, 70, 100, 90, "silu", rank_up=96), Form(40, 1100, 40, 24, out_width=33)],
    ids=lambda form: form.name,
)
def test_may_write_over_its_input(form: Form, backend: str, dtype: torch.dtype) -> None:
    skip_without_interpreter(backend)
    ffn = operands(form, dtype)
    expected = run(ffn, backend)
    columns = expected.shape[1]
    for name in ("p", "up_p") if form.rank_up else ("p",):
        copy = ffn._replace(**{name: getattr(ffn, name).clone()})
        assert torch.equal(run(copy, backend, getattr(copy, name)[:, :columns]), expected)
    # Rows that lie elsewhere than p's: the first result must not be read as the next row's input.
    shifted = torch.zeros(form.rows + 1, form.rank_in, dtype=dtype)
    p = shifted[1:].copy_(ffn.p)
    assert torch.equal(run(ffn._replace(p=p), backend, shifted[:-1, :columns]), expected)


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
@pytest.mark.parametrize("form", [Form(0, 64, 7, 16, rank_up=8), Form(0, 64, 7, 16, out_width=5)])
def test_no_rows_give_no_rows(form: Form, backend: str) -> None:
    skip_without_interpreter(backend)
    assert run(operands(form, torch.float32), backend).shape == (0, form.out_width or 16)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_keeps_leading_dimensions_of_packed_branches(backend: str) -> None:
    skip_without_interpreter(backend)
    ffn = operands(Form(30, 64, 24, 16, "silu", rank_up=8), torch.float32)
    packed = torch.cat([ffn.p, ffn.up_p], -1).view(2, 15, 32)
    out = run(ffn._replace(p=packed[..., :24], up_p=packed[..., 24:]), backend)
    assert out.shape == (2, 15, 16)
    assert_close(out.flatten(0, 1), reference(ffn), run(ffn, "naive"))


def drop_the_last_tile_of_the_width(ffn: FfnOperands) -> FfnOperands:
    cut = ffn._replace(u1=ffn.u1[:-32], b1=ffn.b1[:-32], v2=ffn.v2[:, :-32])
    return cut if ffn.up_u is None else cut._replace(up_u=ffn.up_u[:-32], up_b=ffn.up_b[:-32])


def forget_the_last_bias(ffn: FfnOperands) -> FfnOperands:
    return ffn._replace(up_b=None) if ffn.up_p is not None else ffn._replace(b2=None)


def forget_the_first_bias(ffn: FfnOperands) -> FfnOperands:
    return ffn._replace(b1=None)


def swap_gate_and_up(ffn: FfnOperands) -> FfnOperands:
    return ffn._replace(p=ffn.up_p, u1=ffn.up_u, b1=ffn.up_b, up_p=ffn.p, up_u=ffn.u1, up_b=ffn.b1)


def take_relu_for_silu(ffn: FfnOperands) -> FfnOperands:
    return ffn._replace(activation="relu")


def drop_the_last_rank_of_the_sum(ffn: FfnOperands) -> FfnOperands:
    cut = ffn.v2.clone()
    cut[-1] = 0
    return ffn._replace(v2=cut)


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize(
    "bug",
    [
        drop_the_last_tile_of_the_width,
        forget_the_first_bias,
        forget_the_last_bias,
        swap_gate_and_up,
        take_relu_for_silu,
        drop_the_last_rank_of_the_sum,
    ],
)
@pytest.mark.parametrize("form", [Form(97, 1024, 40, 40, "silu", 40), Form(97, 1024, 40, 40, "silu", 0, 64)])
def test_the_gate_catches(form: Form, bug: Callable[[FfnOperands], FfnOperands], dtype: torch.dtype) -> None:
    if bug is swap_gate_and_up and not form.rank_up:
        pytest.skip("there is no gate to swap")
    ffn = operands(form, dtype)
    expected, baseline = reference(ffn), run(ffn, "naive")
    assert check(run(ffn, "torch"), expected, baseline).passed
    assert not check(run(bug(ffn), "torch"), expected, baseline).passed


@pytest.mark.parametrize(
    "form", [Form(2048, 1024, 96, 96, "silu", 96), Form(2048, 1024, 96, 96, out_width=96)]
)
def test_stream_workspace_is_small(form: Form, peak_extra_bytes: Callable) -> None:
    ffn = operands(form, torch.float32)
    tiles = ffn_stream_tiles(
        2048, 1024, torch.float32, gated=form.rank_up > 0, rank_out=96 if form.out_width else 0
    )
    assert tiles.workspace_bytes <= 1.5 * 2**20

    def streamed() -> torch.Tensor:
        return stream_ffn(ffn, torch.empty(2048, 96), tiles.block_m, tiles.block_d)

    assert peak_extra_bytes(streamed) <= 1.5 * 2**20
    assert peak_extra_bytes(lambda: naive_ffn(ffn)) > 8 * 2**20


def test_one_tanh_gelu_is_near_the_exact_one() -> None:
    x = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    z = (x * x).clamp(max=36.0)
    q = 0.797507853 + z * (0.0370056729 - 0.000351520915 * z)
    exact = 0.5 * x * torch.erfc(-x / 2**0.5)
    assert (0.5 * x * (1 + torch.tanh(x * q)) - exact).abs().max() < 2.52e-5
    far = torch.tensor([-1e4, -50.0, 50.0, 1e4], dtype=torch.float64)
    q_far = 0.797507853 + 36 * (0.0370056729 - 0.000351520915 * 36)
    assert torch.equal(0.5 * far * (1 + torch.tanh(far * q_far)), far.clamp(min=0))
    usual = torch.nn.functional.gelu(x, approximate="tanh")
    assert (usual - exact).abs().max() > 4e-4


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_kernel_takes_large_values(activation: str) -> None:
    skip_without_interpreter("interpret")
    ffn = operands(Form(16, 32, 16, 16, activation), torch.float16)
    ffn = ffn._replace(p=ffn.p * 2000, v2=ffn.v2 / 2000)
    assert_close(run(ffn, "interpret"), reference(ffn), run(ffn, "naive"), activation)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize(
    "form",
    [
        *FORMS,
        Form(1025, 2300, 240, 240),
        Form(1025, 1024, 192, 512, "relu"),
        Form(1025, 2300, 59, 59, "silu", rank_up=40),
        Form(1025, 1024, 240, 240, "gelu", rank_up=192),
        Form(1025, 1024, 128, 128, "gelu_tanh", out_width=768),
        Form(1025, 1024, 240, 240, "gelu", out_width=768),
    ],
    ids=lambda form: form.name,
)
def test_compiled_forms_pass_the_gate(form: Form, dtype: torch.dtype) -> None:
    from flashsvd.kernels.ffn.launch import launch_ffn
    from flashsvd.kernels.ffn.plan import kernel_takes
    from flashsvd.kernels.ffn.run import plan_of
    from flashsvd.kernels.ffn.tiles import ffn_tiles

    ffn = operands(form, dtype)
    on_gpu = fenced(mapped(ffn, torch.Tensor.cuda))
    expected, baseline = reference(ffn), run(ffn, "naive")
    # By what the plan chooses, by chunks, and by the kernel, whatever it would have chosen.
    assert_close(run(on_gpu, "triton"), expected, baseline, plan_of(on_gpu).path)
    assert_close(run(on_gpu, "torch"), expected, baseline, "chunked")
    tiles = ffn_tiles(
        form.rows,
        form.width,
        form.rank_in,
        form.rank_out,
        dtype,
        rank_up=form.rank_up,
        out_width=form.out_width,
    )
    on_16_bytes = mapped(on_gpu, lambda x: guarded(x, 8, 8))
    if kernel_takes(tiles, form.rank_out, form.out_width, dtype, on_16_bytes.wide_loads):
        out = guarded(torch.empty_like(expected, dtype=dtype, device="cuda"))
        assert_close(launch_ffn(on_16_bytes, tiles, out), expected, baseline, "kernel")
