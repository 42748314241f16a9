"""The norm op: every backend against torch in fp64, in place, and bugs that must not pass."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import CPU_BACKENDS, DTYPES, GPU_DTYPES, guarded, skip_without_interpreter

from flashsvd.errors import InputError
from flashsvd.kernels.gate import assert_close, check, relative_error
from flashsvd.kernels.norm import KINDS, fused_norm
from flashsvd.kernels.tiles import STREAM_BUDGET_BYTES

SHAPES = ((1, 1), (3, 17), (17, 64), (5, 97), (2, 1030))
EPS = 1e-5


def inputs(rows: int, width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """x with a mean far from 0, weight, shift, bias."""
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    x = torch.randn(rows, width, generator=generator) * 2 + 3
    return [x.to(dtype), *(torch.randn(width, generator=generator).to(dtype) for _ in range(3))]


def reference(
    x: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor | None, bias: torch.Tensor | None, kind: str
) -> torch.Tensor:
    """torch's own norms in fp64."""
    x, weight, shift, bias = (None if t is None else t.double() for t in (x, weight, shift, bias))  # type: ignore[assignment]
    y = x if bias is None else x + bias
    width = (y.shape[-1],)
    if kind == "layer":
        return torch.nn.functional.layer_norm(y, width, weight, shift, EPS)
    out = torch.nn.functional.rms_norm(y, width, weight, EPS)
    return out if shift is None else out + shift


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_definition_is_the_norm(shape: tuple[int, int], kind: str) -> None:
    x, weight, shift, bias = inputs(*shape, torch.float64)
    for chosen in ((shift, bias), (None, None)):
        out = fused_norm(x, weight, chosen[0], EPS, bias=chosen[1], kind=kind, backend="naive")  # type: ignore[arg-type]
        assert relative_error(out, reference(x, weight, *chosen, kind)) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_passes_the_gate_in_place_and_out_of_place(
    shape: tuple[int, int], kind: str, backend: str, dtype: torch.dtype
) -> None:
    skip_without_interpreter(backend)
    x, weight, shift, bias = inputs(*shape, dtype)
    expected = reference(x, weight, shift, bias, kind)
    plain = fused_norm(x, weight, shift, EPS, bias=bias, kind=kind, backend="naive")  # type: ignore[arg-type]
    held = guarded(x)
    fresh = fused_norm(held, weight, shift, EPS, bias=bias, kind=kind, backend=backend)  # type: ignore[arg-type]
    assert_close(fresh, expected, plain, "out of place")
    assert torch.equal(held, x)
    same = fused_norm(held, weight, shift, EPS, bias=bias, kind=kind, out=held, backend=backend)  # type: ignore[arg-type]
    assert same is held
    assert_close(held, expected, plain, "in place")


def test_the_stream_keeps_a_few_rows_only(peak_extra_bytes: object) -> None:
    x, weight, shift, bias = inputs(4096, 256, torch.float32)
    extra = peak_extra_bytes(lambda: fused_norm(x, weight, shift, EPS, bias=bias, out=x, backend="torch"))  # type: ignore[operator]
    # What comes back was there before, so its bytes are taken off once too often.
    assert extra + x.nbytes <= 1.1 * STREAM_BUDGET_BYTES < 0.4 * x.nbytes


@pytest.mark.parametrize("bug", ["bias", "shift", "mean", "last column"])
def test_the_gate_sees_a_planted_bug(bug: str) -> None:
    x, weight, shift, bias = inputs(17, 64, torch.float16)
    expected = reference(x, weight, shift, bias, "layer")
    plain = fused_norm(x, weight, shift, EPS, bias=bias, backend="naive")
    broken = {
        "bias": lambda: fused_norm(x, weight, shift, EPS, backend="torch"),
        "shift": lambda: fused_norm(x, weight, None, EPS, bias=bias, backend="torch"),
        "mean": lambda: fused_norm(x, weight, shift, EPS, bias=bias, kind="rms", backend="torch"),
        "last column": lambda: torch.cat([plain[:, :-1], x[:, -1:]], 1),
    }[bug]()
    assert not check(broken, expected, plain).passed


def test_bad_arguments_are_one_line() -> None:
    x, weight, shift, _ = inputs(3, 16, torch.float32)
    for call, words in (
        (lambda: fused_norm(x, weight[:8], shift, EPS), "weight must have shape"),
        (lambda: fused_norm(x, weight, shift.half(), EPS), "shift is torch.float16"),
        (lambda: fused_norm(x, weight, shift, EPS, out=x[:2]), "out must have shape"),
        (lambda: fused_norm(x, weight, shift, EPS, kind="batch"), "kind one of layer, rms"),  # type: ignore[arg-type]
        (lambda: fused_norm(x.view(3, 4, 4).transpose(0, 1), weight[:4], None, EPS), "equal distance"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (4099, 768), (513, 4096)], ids=str)
def test_triton_passes_the_gate(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for kind in KINDS:
        x, weight, shift, bias = (t.cuda() for t in inputs(*shape, dtype))
        expected = reference(x, weight, shift, bias, kind)
        plain = fused_norm(x, weight, shift, EPS, bias=bias, kind=kind, backend="naive")
        assert_close(fused_norm(x, weight, shift, EPS, bias=bias, kind=kind), expected, plain, kind)
        fused_norm(x, weight, shift, EPS, bias=bias, kind=kind, out=x)
        assert_close(x, expected, plain, f"{kind} in place")
