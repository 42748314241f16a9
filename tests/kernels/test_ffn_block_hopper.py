"""The Hopper kernel of the feed-forward sublayer on a GPU that can run it, called directly and through the op."""

from __future__ import annotations

import pytest
import torch
from ffn_block_cases import PARTS, BlockForm, block_inputs, block_reference, run_block, run_hopper
from kernel_calls import mapped
from kernel_cases import guarded
from side_load import SideLoad

from flashsvd.kernels.ffn import ACTIVATIONS
from flashsvd.kernels.ffn_block import plan_of
from flashsvd.kernels.ffn_block.hopper import block_takes, block_tiles, prepare_block
from flashsvd.kernels.ffn_block.operands import BlockOperands
from flashsvd.kernels.gate import assert_close
from flashsvd.kernels.starter import Launch

pytestmark = pytest.mark.gpu

FORMS = (
    BlockForm(1, 768, 3072, 240, 240),
    BlockForm(1, 128, 200, 8, 8, "relu"),
    BlockForm(64, 64, 64, 16, 8, "silu"),
    BlockForm(127, 128, 200, 8, 104, "silu"),
    BlockForm(127, 1024, 3072, 256, 256, "gelu_tanh"),
    BlockForm(300, 2048, 200, 240, 256),
    BlockForm(1000, 768, 200, 104, 240, "relu"),
    BlockForm(1000, 1024, 3072, 104, 104),
    BlockForm(8449, 128, 200, 104, 8, "gelu_tanh"),
    BlockForm(8449, 1088, 520, 240, 240, "silu"),
    BlockForm(16387, 768, 3072, 240, 240),
    BlockForm(16387, 1024, 200, 256, 256, "relu"),
    *(BlockForm(1000, 768, 3072, 240, 240, without=(part,)) for part in PARTS),
    *(BlockForm(16387, 128, 200, 104, 104, without=(part,)) for part in PARTS),
    BlockForm(1000, 768, 200, 240, 240, without=PARTS),
    BlockForm(9000, 768, 200, 240, 240, without=PARTS),
)
"""From 8449 rows on, 128 rows by 8 warps on an H200, below 64 by 4."""


@pytest.fixture(autouse=True)
def hopper() -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs compute capability 9")


def on_gpu(form: BlockForm, dtype: torch.dtype, seed: int = 0) -> BlockOperands:
    """Everything inside NaN, so that reading past any row or end shows; rows start on 16 bytes."""
    block: BlockOperands = mapped(block_inputs(form, dtype, seed), lambda t: guarded(t.cuda(), 8, 8))
    return block


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_passes_the_gate(form: BlockForm, dtype: torch.dtype) -> None:
    block = on_gpu(form, dtype)
    expected = block_reference(block)
    plain = run_block(block._replace(x=block.x.clone()), "naive")
    assert run_hopper(block) is block.x
    assert_close(block.x, expected, plain, form.name)
    assert block.x._base is not None and block.x._base.isfinite().sum() == block.x.numel()


@pytest.mark.parametrize("tall", [False, True], ids=["64 rows", "128 rows"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_by_both_tiles(activation: str, tall: bool) -> None:
    for width in (8, 64, 72, 128, 136, 3072):
        block = on_gpu(BlockForm(333, 768, width, 240, 200, activation), torch.bfloat16)
        expected = block_reference(block)
        plain = run_block(block._replace(x=block.x.clone()), "naive")
        assert_close(run_hopper(block, tall), expected, plain, f"D {width}")


@pytest.mark.parametrize("rows", [1, 63, 1000, 16387])
def test_rows_outside_are_left_alone(rows: int) -> None:
    """Numbers before, after and between the rows are the same bits afterwards."""
    block = on_gpu(BlockForm(rows, 768, 200, 240, 240), torch.bfloat16)
    held = torch.randn(rows + 300, 768 + 64, device="cuda").bfloat16()
    inner = held[150 : 150 + rows, 32:-32]
    x = inner.copy_(block.x)
    before = held.clone()
    expected = run_hopper(block)
    run_hopper(block._replace(x=x))
    assert torch.equal(x, expected)
    before[150 : 150 + rows, 32:-32] = x
    assert torch.equal(held.view(torch.int16), before.view(torch.int16))


@pytest.mark.parametrize(
    "form",
    [
        BlockForm(16384, 768, 3072, 240, 240),
        BlockForm(8449, 1024, 1000, 256, 104, "gelu_tanh"),
        BlockForm(8200, 768, 3072, 240, 240, "silu", without=("entry",)),
        BlockForm(1000, 128, 200, 104, 104, "relu", without=("b1",)),
    ],
    ids=lambda form: form.name,
)
def test_two_hundred_runs_are_one_run_on_a_busy_gpu(form: BlockForm) -> None:
    block = on_gpu(form, torch.bfloat16)
    x, expected = block.x.clone(), block_reference(block)
    plain = run_block(block._replace(x=x.clone()), "naive")
    first = run_hopper(block).clone()
    assert_close(first, expected, plain, form.name)
    tiles = block_tiles(form.rows, form.hidden, form.rank_in, form.rank_out)
    assert tiles is not None
    start = prepare_block(block, tiles)
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    with SideLoad() as load:
        for _ in range(200):
            block.x.copy_(x)
            # The GPU is still at the first when the kernel starts, and at the last when it ends.
            load.step()
            start(block)
            load.step()
            different += (block.x.contiguous().view(torch.int16) != first.view(torch.int16)).any()
    assert int(different) == 0


@pytest.mark.parametrize("seed", range(5))
def test_new_inputs_are_right_on_a_busy_gpu(seed: int) -> None:
    with SideLoad() as load:
        for form in (BlockForm(16387, 768, 3072, 240, 240), BlockForm(4097, 1024, 3072, 256, 240, "silu")):
            block = on_gpu(form, torch.bfloat16, seed)
            expected = block_reference(block)
            plain = run_block(block._replace(x=block.x.clone()), "naive")
            for _ in range(5):
                load.step()
            run_hopper(block)
            load.step()
            assert_close(block.x, expected, plain, form.name)


def test_the_op_takes_it_and_a_repeated_launch_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    block: BlockOperands = mapped(
        block_inputs(BlockForm(16384, 768, 3072, 240, 240), torch.bfloat16), torch.Tensor.cuda
    )
    assert block_takes(block) and plan_of(block).tiles is not None
    x = block.x.clone()
    expected = run_hopper(block).clone()

    def again() -> torch.Tensor:
        # [B, S, d], as an encoder has it.
        return run_block(block._replace(x=x.clone().view(32, 512, 768)), None).view(16384, 768)

    assert torch.equal(again(), expected)

    def refuse(*_: object) -> None:
        raise AssertionError("this launch went through Triton")

    monkeypatch.setattr(Launch, "_through_triton", refuse)
    assert torch.equal(again(), expected)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        aside = again()
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(aside, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = again()
    captured.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "form",
    [
        BlockForm(200, 768, 3072, 240, 240),
        BlockForm(1000, 768, 1024, 304, 240),
        BlockForm(129, 100, 72, 24, 24),
        BlockForm(129, 97, 65, 7, 5),
        BlockForm(9000, 768, 200, 240, 240, kind="rms"),
    ],
    ids=lambda form: form.name,
)
def test_what_the_kernel_does_not_take_is_composed(form: BlockForm, dtype: torch.dtype) -> None:
    block: BlockOperands = mapped(block_inputs(form, dtype), torch.Tensor.cuda)
    assert plan_of(block).tiles is None
    expected = block_reference(block)
    plain = run_block(block._replace(x=block.x.clone()), "naive")
    assert_close(run_block(block, None), expected, plain, form.name)
