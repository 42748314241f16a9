"""The Hopper kernel of a product on a GPU that can run it, called directly and through the op."""

from __future__ import annotations

import pytest
import torch
from kernel_calls import LinearInputs, floats_mapped, linear_inputs, mapped, multiply
from kernel_cases import guarded
from side_load import SideLoad

from flashsvd.kernels.gate import assert_close
from flashsvd.kernels.linear import linear
from flashsvd.kernels.linear.hopper import TILES, by_tiles, linear_candidates, linear_takes
from flashsvd.kernels.starter import Launch

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def hopper() -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs compute capability 9")


def on_gpu(
    rows: int, width: int, depth: int, bias: bool = True, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> LinearInputs:
    """Everything inside NaN, so that reading past any row or end shows; rows start on 16 bytes."""
    given = linear_inputs((rows,), width, depth, bias, dtype, seed)
    found: LinearInputs = mapped(given, lambda tensor: guarded(tensor.cuda(), 8, 8))
    return found


def expectations(given: LinearInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition in fp64, and in the inputs' own dtype."""
    return linear(*floats_mapped(given, torch.Tensor.double), backend="naive"), linear(
        *given, backend="naive"
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("depth", [64, 72, 768, 1000])
@pytest.mark.parametrize("width", [8, 200, 1440])
@pytest.mark.parametrize("rows", [1, 127, 1000, 16387])
def test_passes_the_gate_and_leaves_what_is_around(
    rows: int, width: int, depth: int, dtype: torch.dtype, bias: bool
) -> None:
    given = on_gpu(rows, width, depth, bias, dtype)
    before = mapped(given, torch.clone)
    # Numbers around the output, to be the same bits afterwards, and NaN in it.
    held = torch.randn(rows + 300, width + 64, device="cuda").to(dtype)
    out = held[150 : 150 + rows, 32:-32].fill_(float("nan"))
    around = held.clone()
    assert multiply(given, out) is out
    assert_close(out, *expectations(given), f"M {rows} N {width} K {depth}")
    around[150 : 150 + rows, 32:-32] = out
    assert torch.equal(held.view(torch.int16), around.view(torch.int16))
    assert all(a is None or torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize("tiles", linear_candidates(), ids=str)
@pytest.mark.parametrize(
    "sizes", [(1, 8, 64), (333, 520, 200), (16387, 1440, 768), (1000, 4480, 8), (70000, 264, 72)], ids=str
)
def test_all_tiles_pass_the_gate(sizes: tuple[int, int, int], tiles: object) -> None:
    """Programs with fewer steps than stages, with one tile and with several."""
    given = on_gpu(*sizes)
    assert_close(multiply(given, tiles=tiles), *expectations(given), str(sizes))  # type: ignore[arg-type]


def test_an_infinity_stays_in_its_row() -> None:
    given = on_gpu(1000, 1440, 768)
    expected = multiply(given)
    given.x[300, 767] = float("inf")
    out = multiply(given)
    assert not out[300].isfinite().any()
    out[300] = expected[300]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("sizes", [(8192, 1440, 768), (8449, 2312, 264), (1000, 4480, 72)], ids=str)
def test_two_hundred_runs_are_one_run_on_a_busy_gpu(sizes: tuple[int, int, int]) -> None:
    given = on_gpu(*sizes)
    out = guarded(torch.empty(sizes[0], sizes[1], dtype=torch.bfloat16, device="cuda"), 8, 8)
    first = multiply(given).clone()
    assert_close(first, *expectations(given), str(sizes))
    start = by_tiles(*given, out, TILES)
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    with SideLoad() as load:
        for _ in range(200):
            out.fill_(float("nan"))
            # The GPU is still at the first when the kernel starts, and at the last when it ends.
            load.step()
            start(*given, out)
            load.step()
            different += (out.contiguous().view(torch.int16) != first.view(torch.int16)).any()
    assert int(different) == 0


@pytest.mark.parametrize("seed", range(5))
def test_new_inputs_are_right_on_a_busy_gpu(seed: int) -> None:
    with SideLoad() as load:
        for sizes in ((16387, 1440, 768), (4097, 2304, 1000)):
            given = on_gpu(*sizes, seed=seed)
            expected = expectations(given)
            for _ in range(5):
                load.step()
            out = multiply(given)
            load.step()
            assert_close(out, *expected, str(sizes))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_op_takes_it_and_a_repeated_launch_gives_the_same(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = mapped(linear_inputs((16, 512), 1440, 768, bias, torch.bfloat16), torch.Tensor.cuda)
    packed = torch.randn(16, 512, 1440, device="cuda").bfloat16()
    columns = given._replace(x=packed[..., 480:1248].copy_(given.x))
    assert linear_takes(given.x, given.weight) and linear_takes(columns.x, columns.weight)
    expected = multiply(given)
    assert expected.shape == (16, 512, 1440) and expected.is_contiguous()
    assert torch.equal(linear(*given), expected) and torch.equal(linear(*columns), expected)

    def refuse(*_: object) -> None:
        raise AssertionError("this launch went through Triton")

    monkeypatch.setattr(Launch, "_through_triton", refuse)
    assert torch.equal(linear(*given), expected) and torch.equal(linear(*columns), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = linear(*given)
    captured.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "sizes", [(1, 8, 64), (16384, 240, 768), (333, 1440, 97), (9000, 1444, 264)], ids=str
)
def test_what_the_kernel_does_not_take_is_torchs(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, width, depth = sizes
    given = mapped(linear_inputs((rows,), width, depth, True, dtype), torch.Tensor.cuda)
    assert not linear_takes(given.x, given.weight)
    assert torch.equal(linear(*given), torch.nn.functional.linear(*given))
