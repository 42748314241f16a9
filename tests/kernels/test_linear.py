"""The product with a weight and a bias on a CPU: every backend against its definition, and where a kernel pays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from call_lists import ENDURANCE, SANITIZED
from hypothesis import given
from hypothesis import strategies as st
from kernel_calls import floats_mapped, linear_inputs
from kernel_cases import CPU_BACKENDS, DTYPES, guarded, skip_without_interpreter

from flashsvd.errors import InputError
from flashsvd.kernels.backend import Gpu
from flashsvd.kernels.gate import assert_close, check, relative_error
from flashsvd.kernels.linear import hopper, linear
from flashsvd.kernels.linear.hopper import TILES, linear_candidates, linear_takes, worth_it
from flashsvd.kernels.tiles import shared_limit_bytes
from flashsvd.kernels.tma import describable

SHAPES = (((), 5, 16), ((1,), 8, 64), ((17,), 200, 72), ((3, 5), 24, 97), ((2, 3, 4), 40, 768))


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The sum written out, in fp64."""
    out = torch.einsum("...k,nk->...n", x.double(), weight.double())
    return out if bias is None else out + bias.double()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_definition_is_the_product(shape: tuple[tuple[int, ...], int, int], bias: bool) -> None:
    for dtype, limit in ((torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 3e-3)):
        given = linear_inputs(*shape, bias, dtype)
        out = linear(*given, backend="naive")
        assert out.dtype == dtype and relative_error(out, reference(*given)) < limit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_passes_the_gate(
    shape: tuple[tuple[int, ...], int, int], bias: bool, backend: str, dtype: torch.dtype
) -> None:
    skip_without_interpreter(backend)
    given = linear_inputs(*shape, bias, dtype)
    fenced = floats_mapped(given, guarded)
    out = linear(*fenced, backend=backend)
    assert out.is_contiguous() and out.dtype == dtype
    assert_close(out, reference(*given), linear(*given, backend="naive"), str(shape))
    assert all(a is None or torch.equal(a, b) for a, b in zip(fenced, given, strict=True))


@given(
    st.lists(st.integers(1, 5), max_size=3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from((*CPU_BACKENDS, None)),
)
def test_backends_agree(leading: list[int], width: int, depth: int, bias: bool, backend: str | None) -> None:
    if backend is not None:
        skip_without_interpreter(backend)
    given = linear_inputs(tuple(leading), width, depth, bias, torch.float32)
    x = given.x.clone()
    out = linear(*given, backend=backend)
    assert out.shape == (*leading, width) and torch.equal(given.x, x)
    torch.testing.assert_close(out, linear(*given, backend="naive"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["naive", "torch", None])
def test_nothing_in_is_nothing_out(backend: str | None) -> None:
    weight, bias = torch.randn(8, 16), torch.randn(8)
    assert linear(torch.randn(2, 0, 16), weight, bias, backend=backend).shape == (2, 0, 8)
    assert torch.equal(linear(torch.randn(3, 0), weight[:, :0], bias, backend=backend), bias.expand(3, 8))


@pytest.mark.parametrize("backend", ["naive", "torch", "interpret"])
def test_no_gradients_are_recorded(backend: str) -> None:
    skip_without_interpreter(backend)
    x, weight = torch.randn(3, 16, requires_grad=True), torch.randn(8, 16, requires_grad=True)
    assert torch.is_grad_enabled() and not linear(x, weight, backend=backend).requires_grad


@pytest.mark.parametrize("bug", ["bias", "last row", "last column", "the rest of K"])
def test_the_gate_sees_a_planted_bug(bug: str) -> None:
    x, weight, bias = given = linear_inputs((170,), 200, 72, True, torch.float16)
    assert bias is not None
    plain = linear(*given, backend="naive")
    broken = plain.clone()
    if bug == "bias":
        broken = linear(x, weight, backend="naive")
    elif bug == "last row":
        broken[-1] = bias
    elif bug == "last column":
        broken[:, -1] -= bias[-1]
    else:
        broken = linear(x[:, :64], weight[:, :64], bias, backend="naive")
    assert check(plain, reference(*given), plain).passed
    assert not check(broken, reference(*given), plain).passed


@pytest.mark.parametrize(
    "change, said",
    [
        ({"x": [0.0]}, "x must be a tensor, got list"),
        ({"x": torch.zeros(())}, r"x must be \[..., K\]"),
        ({"x": torch.zeros(3, 16).long()}, "x must be float16, bfloat16"),
        ({"x": torch.zeros(16, 3).T}, "last stride 1"),
        ({"x": torch.zeros(3, 15)}, r"weight must have shape \[8, 15\]"),
        ({"weight": torch.zeros(16)}, r"weight \[N, K\], got"),
        ({"weight": torch.zeros(16, 8).T}, "weight must have last stride 1"),
        ({"weight": torch.zeros(8, 16).half()}, "weight is torch.float16 but x is torch.float32; cast"),
        ({"weight": torch.zeros(8, 16, device="meta")}, "move one of them"),
        ({"weight": None}, "weight must be a tensor, got NoneType"),
        ({"bias": torch.zeros(16)}, r"bias must have shape \[8\]"),
        ({"bias": torch.zeros(16)[::2]}, "bias must have last stride 1"),
        ({"bias": 0.0}, "bias must be a tensor, got float"),
        ({"backend": "cuda"}, "naive, torch, triton, interpret"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_are_one_line_even_after_good_ones(change: dict[str, Any], said: str) -> None:
    sound: dict[str, Any] = {"x": torch.zeros(3, 16), "weight": torch.zeros(8, 16), "bias": torch.zeros(8)}
    for _ in range(2):
        linear(**sound)
        with pytest.raises(InputError, match=said) as caught:
            linear(**(sound | change))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sizes, worth",
    [
        # What was measured on an H200.
        ((8192, 1440, 768), True),
        ((16384, 1440, 768), True),
        ((8192, 2304, 768), True),
        ((16384, 240, 768), False),
        ((8192, 768, 480), False),
        ((16384, 768, 240), False),
        # As many tiles as multiprocessors, and then twice as many.
        ((33792, 128, 768), False),
        ((33792, 256, 768), True),
        ((33792, 256, 255), False),
        # One, and the shares of two turns on either side of 0.85.
        ((1, 8, 768), False),
        ((256, 128 * 224, 768), False),
        ((256, 128 * 225, 768), True),
        ((0, 1440, 768), False),
        ((8192, 0, 768), False),
    ],
    ids=str,
)
def test_where_it_is_worth_it(sizes: tuple[int, int, int], worth: bool) -> None:
    assert worth_it(*sizes, 132) is worth


class OnGpu(torch.Tensor):
    """Memory of a CPU that says it is a GPU's."""

    is_cuda = True


def test_what_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def takes(x: torch.Tensor, weight: torch.Tensor, major: int = 9, multiprocessors: int = 2) -> bool:
        monkeypatch.setattr(hopper, "gpu_of", lambda _: Gpu(major, 0, multiprocessors))
        return linear_takes(x.as_subclass(OnGpu), weight.as_subclass(OnGpu))

    x, weight = torch.zeros(2, 512, 256).bfloat16(), torch.zeros(200, 256).bfloat16()
    packed = torch.zeros(2, 512, 512).bfloat16()
    assert takes(x, weight) and takes(x.half(), weight.half()) and takes(x[0], weight)
    # Columns of a wider product.
    assert takes(packed[..., 8:264], weight) and takes(packed[0, :, 256:], weight)
    assert not linear_takes(x, weight)
    assert not takes(x, weight, major=8) and not takes(x, weight, major=10)
    assert not takes(x, weight, multiprocessors=8) and not takes(x, weight, multiprocessors=5)
    assert not takes(x.float(), weight.float())
    assert not takes(x[:0], weight) and not takes(x, weight[:0])
    # Sequences further apart than rows, rows that start beside 16 bytes, or all in one place.
    assert not takes(torch.zeros(2, 600, 256).bfloat16()[:, :512], weight)
    assert not takes(packed[..., 4:260], weight) and not takes(x[:1, :1].expand(2, 512, 256), weight)
    # An output whose rows are no multiple of 16 bytes, and a weight whose are not.
    assert not takes(x, torch.zeros(204, 256).bfloat16())
    assert not takes(x, torch.zeros(200, 260).bfloat16()[:, :256])


def test_tiles_fit_a_multiprocessor() -> None:
    found = linear_candidates()
    assert found[0] == TILES and len(set(found)) == len(found) == 4
    for tiles in found:
        assert tiles.shared_bytes <= shared_limit_bytes(90)
        # A warpgroup multiplies 64 rows at a time by at most 256 columns.
        assert tiles.block_m % (16 * tiles.num_warps) == 0 and tiles.block_n <= 256


def test_the_calls_of_the_endurance_tests_can_be_described() -> None:
    calls = [call for call in (*ENDURANCE, *SANITIZED) if call.kernel == "linear_hopper"]
    assert len(calls) >= 8
    for call in calls:
        fenced = floats_mapped(call.inputs(torch.bfloat16), call.fence)
        out = call.fence(torch.zeros(fenced.x.shape[0], fenced.weight.shape[0], dtype=torch.bfloat16))
        assert all(map(describable, (fenced.x, fenced.weight, out)))
