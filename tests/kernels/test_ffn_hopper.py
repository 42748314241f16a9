"""The Hopper feed-forward kernel on a GPU that can run it, called directly and through the plan."""

from __future__ import annotations

import pytest
import torch
from side_load import SideLoad

from flashsvd.kernels.ffn import ACTIVATIONS, flash_svd_ffn
from flashsvd.kernels.ffn.activation import activate
from flashsvd.kernels.ffn.hopper import hopper_reads, hopper_tiles, launch_hopper
from flashsvd.kernels.ffn.naive import naive_ffn
from flashsvd.kernels.ffn.operands import FfnOperands
from flashsvd.kernels.ffn.run import plan_of
from flashsvd.kernels.gate import assert_close

pytestmark = pytest.mark.gpu

SIZES = (
    (1, 64, 8, 8),
    (129, 72, 40, 16),
    (1000, 104, 64, 128),
    (257, 3072, 240, 240),
    (9000, 1024, 240, 200),
    (500, 200, 312, 320),
    (300, 136, 320, 40),
    (300, 136, 40, 264),
)
TWO_WARPGROUPS = (
    (8449, 80, 240, 240),
    (8449, 1024, 240, 240),
    (8449, 3072, 240, 240),
    (4097, 1024, 240, 264),
    (4097, 528, 312, 264),
)
"""In each 128 rows by 8 warps, on every multiprocessor of an H200; widths of few and of many blocks, with tails and
without."""


@pytest.fixture(autouse=True)
def hopper() -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs compute capability 9")


def operands(
    rows: int,
    width: int,
    rank_in: int,
    rank_out: int,
    dtype: torch.dtype,
    activation: str,
    bias: bool = True,
    seed: int = 0,
) -> FfnOperands:
    """Matrices inside wider ones of NaN, so that reading past any row shows."""
    generator = torch.Generator("cuda").manual_seed(rows + width + seed)

    def draw(first: int, second: int, scale: float) -> torch.Tensor:
        held = torch.full((first + 2, second + 8), float("nan"), dtype=dtype, device="cuda")
        values = torch.randn(first, second, generator=generator, device="cuda") * scale
        return held[1:-1, :second].copy_(values)

    b1 = torch.randn(width, generator=generator, device="cuda").to(dtype) if bias else None
    return FfnOperands(
        draw(rows, rank_in, 1.0),
        draw(width, rank_in, rank_in**-0.5),
        b1,
        draw(rank_out, width, width**-0.5),
        activation,
    )


def reference(ffn: FfnOperands) -> torch.Tensor:
    p, u1, b1, v2 = (None if x is None else x.double() for x in ffn[:4])
    return activate(torch.nn.functional.linear(p, u1, b1), ffn.activation) @ v2.T


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_passes_the_gate(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    for activation in ACTIVATIONS:
        ffn = operands(*size, dtype, activation, bias=activation != "relu")
        assert hopper_reads(ffn)
        out = torch.full((size[0], size[3]), float("nan"), dtype=dtype, device="cuda")
        tiles = hopper_tiles(size[0], size[2], size[3])
        assert tiles is not None
        launch_hopper(ffn, tiles, out)
        assert_close(out, reference(ffn), naive_ffn(ffn), activation)


def test_the_op_takes_it_and_writes_in_place() -> None:
    ffn = operands(16384, 768, 240, 240, torch.bfloat16, "gelu")
    assert plan_of(ffn).path == "hopper"
    expected, plain = reference(ffn), naive_ffn(ffn)
    fresh = flash_svd_ffn(*ffn[:4], activation="gelu")
    assert_close(fresh, expected, plain, "fresh")
    assert flash_svd_ffn(*ffn[:4], activation="gelu", out=ffn.p) is ffn.p
    assert torch.equal(ffn.p, fresh)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", TWO_WARPGROUPS, ids=str)
def test_two_warpgroups_are_right_on_a_busy_gpu(
    size: tuple[int, int, int, int], activation: str, bias: bool
) -> None:
    """Block j's registers were once overwritten while block j - 1's product read them: wrong rows now and then, and
    only on a GPU that had other work."""
    tiles = hopper_tiles(size[0], size[2], size[3])
    assert tiles is not None and (tiles.block_m, tiles.num_warps) == (128, 8)
    with SideLoad() as load:
        for seed in range(20):
            ffn = operands(*size, torch.bfloat16, activation, bias, seed)
            out = torch.full((size[0], size[3]), float("nan"), dtype=torch.bfloat16, device="cuda")
            # The GPU is still at the first when the kernel starts, and at the last when it ends.
            for _ in range(5):
                load.step()
            launch_hopper(ffn, tiles, out)
            load.step()
            assert_close(out, reference(ffn), naive_ffn(ffn), f"{activation}, seed {seed}")
