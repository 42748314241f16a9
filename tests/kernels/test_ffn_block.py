"""The feed-forward sublayer: every backend against fp64, in place, its plan, and bugs that must not pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ffn_block_cases import PARTS, BlockForm, block_inputs, block_reference, run_block
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_calls import mapped
from kernel_cases import CPU_BACKENDS, guarded, skip_without_interpreter

from flashsvd.errors import DeviceError, InputError
from flashsvd.kernels.ffn import ACTIVATIONS, flash_svd_ffn_v2
from flashsvd.kernels.ffn_block import BlockNorm, block_plan
from flashsvd.kernels.ffn_block.hopper import block_takes, block_tiles
from flashsvd.kernels.ffn_block.operands import BlockOperands
from flashsvd.kernels.gate import assert_close, check, relative_error
from flashsvd.kernels.norm import KINDS, fused_norm

FORMS = st.builds(
    BlockForm,
    rows=st.integers(1, 40),
    hidden=st.integers(8, 80),
    width=st.integers(1, 90),
    rank_in=st.integers(1, 30),
    rank_out=st.integers(1, 30),
    activation=st.sampled_from(ACTIVATIONS),
    without=st.lists(st.sampled_from(PARTS), unique=True).map(tuple),
    kind=st.sampled_from(KINDS),
    entry_kind=st.sampled_from(KINDS),
)
SMALL = BlockForm(17, 64, 96, 24, 24)


@given(form=FORMS, seed=st.integers(0, 999))
def test_definition_is_the_formula(form: BlockForm, seed: int) -> None:
    block = block_inputs(form, torch.float64, seed)
    expected = block_reference(block)
    assert relative_error(run_block(block, "naive"), expected) < 1e-11


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@settings(max_examples=30)
@given(form=FORMS, seed=st.integers(0, 999), dtype=st.sampled_from((torch.float32, torch.float16)))
def test_passes_the_gate(backend: str, form: BlockForm, seed: int, dtype: torch.dtype) -> None:
    skip_without_interpreter(backend)
    # Of a few numbers, plain torch's may all be rounded right by luck, and the gate then asks as much of the op.
    assume(form.rows * form.hidden >= 100)
    block = block_inputs(form, dtype, seed)
    expected = block_reference(block)
    plain = run_block(block._replace(x=block.x.clone()), "naive")
    assert_close(run_block(block, backend), expected, plain, form.name)


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
@pytest.mark.parametrize("without", [(), ("entry",)], ids=["entry", "no entry"])
def test_x_is_written_and_nothing_else(without: tuple[str, ...], backend: str) -> None:
    skip_without_interpreter(backend)
    block = block_inputs(BlockForm(6, 64, 96, 24, 16, without=without), torch.float32)
    expected = run_block(block._replace(x=block.x.clone()), "naive")
    fenced: BlockOperands = mapped(block, guarded)
    # [2, 3, d] in rows of a wider matrix.
    rows = torch.full((8, 70), float("nan"))
    x = rows[1:7, 3:67].unflatten(0, (2, 3)).copy_(block.x.view(2, 3, 64))
    assert run_block(fenced._replace(x=x), backend) is x
    torch.testing.assert_close(x.view(6, 64), expected, rtol=1e-5, atol=1e-5)
    assert rows.isfinite().sum() == x.numel()
    assert torch.equal(fenced.x, block.x)
    for was, now in zip((*block[1:7], *block.norm), (*fenced[1:7], *fenced.norm), strict=True):
        if isinstance(was, torch.Tensor):
            assert torch.equal(now, was) and now._base is not None
            assert now._base.isfinite().sum() == was.numel()


def test_no_rows_and_no_gradients() -> None:
    block = block_inputs(SMALL, torch.float32)
    empty = block.x[:0]
    assert run_block(block._replace(x=empty), "torch") is empty
    for backend in ("naive", "torch"):
        wanted = mapped(block, lambda tensor: tensor.clone().requires_grad_())
        assert run_block(wanted, backend) is wanted.x and wanted.x.is_leaf


@pytest.mark.parametrize(
    "change, said",
    [
        ({"x": torch.zeros(3, 63)}, "v1 must have shape [24, 63], got [24, 64]"),
        ({"x": torch.zeros(64, 3).T}, "x must have last stride 1"),
        ({"x": torch.zeros(64).expand(3, 64)}, "must not share memory"),
        ({"x": torch.zeros(3, 4, 64).transpose(0, 1)}, "must be at equal distance"),
        ({"x": [0.0]}, "x must be a tensor, got list"),
        ({"v1": torch.zeros(24)}, "[..., d], [R1, d], [D, R1], [R2, D], [d, R2], got [17, 64], [24]"),
        ({"v1": None}, "[d, R2], got [17, 64], NoneType"),
        ({"u1": torch.zeros(96, 23)}, "v1 must have shape [23, 64]"),
        ({"u1": torch.zeros(96, 24).half()}, "u1 is torch.float16 but x is torch.float32; cast one of them"),
        ({"b1": torch.zeros(95)}, "b1 must have shape [96], got [95]"),
        ({"v2": torch.zeros(24, 95)}, "v2 must have shape [24, 96], got [24, 95]"),
        ({"v2": torch.zeros(0, 96)}, "every size must be at least 1, got d 64, D 96, R1 24, R2 0"),
        ({"u2": torch.zeros(63, 24)}, "u2 must have shape [64, 24], got [63, 24]"),
        ({"b2": torch.zeros(64, device="meta")}, "b2 is on meta but x on cpu; move one of them"),
        ({"b2": torch.zeros(128)[::2]}, "b2 must have last stride 1"),
        ({"activation": "tanh"}, "gelu, gelu_tanh, relu, silu, got 'tanh'"),
        ({"norm": (torch.ones(64), None, 1e-5)}, "norm must be a BlockNorm, got tuple"),
        ({"norm": BlockNorm(torch.ones(64), None, 1e-5, torch.ones(64))}, "pass it as b2"),
        ({"norm": BlockNorm(torch.ones(63), None, 1e-5)}, "norm.weight must have shape [64], got [63]"),
        ({"norm": BlockNorm(None, None, 1e-5)}, "norm.weight must be a tensor, got NoneType"),
        (
            {"norm": BlockNorm(torch.ones(64), torch.ones(1), 1e-5)},
            "norm.shift must have shape [64], got [1]",
        ),
        ({"norm": BlockNorm(torch.ones(64), None, "small")}, "norm.eps must be a number, got str"),
        ({"entry": "first"}, "entry must be a BlockNorm, got str"),
        ({"entry": BlockNorm(torch.ones(64), None, 1e-5, torch.ones(2))}, "entry.bias must have shape [64]"),
        (
            {"entry": BlockNorm(torch.ones(64), None, 1e-5, kind="batch")},
            "entry.kind must be one of layer, rms",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_refuses_after_a_good_call(change: dict[str, Any], said: str) -> None:
    for _ in range(2):
        run_block(block_inputs(SMALL, torch.float32), "torch")
        with pytest.raises(InputError) as error:
            run_block(block_inputs(SMALL, torch.float32)._replace(**change), "torch")
        assert said in str(error.value) and "\n" not in str(error.value)


def test_a_backend_that_cannot_run_says_so() -> None:
    block = block_inputs(SMALL, torch.float64)
    before = block.x.clone()
    with pytest.raises(DeviceError, match="needs tensors on a CUDA device"):
        run_block(block, "triton")
    with pytest.raises(InputError, match="naive, torch, triton, interpret"):
        run_block(block, "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="use backend 'torch'"):
            run_block(block, "interpret")
    assert torch.equal(block.x, before)


@pytest.mark.parametrize(
    "bug",
    [
        "residual",
        "feed-forward",
        "entry norm",
        "entry bias",
        "b1",
        "b2",
        "shift",
        "mean",
        "eps",
        "last row",
        "last column",
    ],
)
def test_the_gate_sees_a_planted_bug(bug: str) -> None:
    # Rows of small variance, so that eps shows.
    block = block_inputs(SMALL, torch.float16)
    block = block._replace(
        x=block.x * 0.05, entry=block.entry and block.entry._replace(bias=block.x[0] * 0.05)
    )
    expected = block_reference(block)
    assert block.entry is not None
    plain = run_block(block._replace(x=block.x.clone()), "naive")
    entry, x = block.entry, block.x.clone()
    change: dict[str, Any] = {
        "feed-forward": {"v2": block.v2 * 0},
        "entry norm": {"entry": None},
        "entry bias": {"entry": entry._replace(bias=None)},
        "b1": {"b1": None},
        "b2": {"b2": None},
        "shift": {"norm": block.norm._replace(shift=None)},
        "mean": {"norm": block.norm._replace(kind="rms")},
        "eps": {"entry": entry._replace(eps=1e-5)},
    }.get(bug, {})
    broken = run_block(block._replace(x=x, **change), "torch")
    if bug == "residual":
        # Of before the norm, where it is of after.
        z = fused_norm(block.x, entry.weight, entry.shift, entry.eps, bias=entry.bias)
        f = flash_svd_ffn_v2(
            z @ block.v1.T, block.u1, block.b1, block.v2, block.u2, block.b2, activation="gelu"
        )
        broken = fused_norm(block.x + f, block.norm.weight, block.norm.shift, block.norm.eps)
    elif bug == "last row":
        broken[-1] = broken[-2]
    elif bug == "last column":
        broken[:, -1] = broken[:, -2]
    else:
        assert change
    assert not check(broken, expected, plain).passed


BF16 = torch.bfloat16


def test_the_measured_case_takes_the_kernel_at_its_time() -> None:
    for entry, kernel_us in ((True, 127.7), (False, 120.6)):
        plan = block_plan(16384, 768, 3072, 240, 240, BF16, "sm_90", entry=entry)
        assert plan.tiles == block_tiles(16384, 768, 240, 240)
        assert plan.predicted_us == pytest.approx(kernel_us, rel=0.05)
    composed = block_plan(16384, 768, 3072, 240, 240, BF16, "sm_90", entry=True, takes=False)
    assert composed.tiles is None and composed.predicted_us == pytest.approx(151.5, rel=0.05)
    assert composed.why == "5 kernels after one another: about 154 us, as the one does not take this call"


@pytest.mark.parametrize(
    "rows, hidden, rank_in, rank_out, dtype, kind",
    [
        (200, 768, 240, 240, BF16, "sm_90"),
        (16384, 768, 300, 240, BF16, "sm_90"),
        (16384, 768, 240, 257, BF16, "sm_90"),
        (16384, 100, 240, 240, BF16, "sm_90"),
        (16384, 2112, 240, 240, BF16, "sm_90"),
        (16384, 768, 240, 240, torch.float32, "sm_90"),
        (16384, 768, 240, 240, BF16, "sm_80"),
        (16384, 768, 240, 240, BF16, "sm_100"),
        (16384, 768, 240, 240, BF16, "cpu"),
    ],
)
def test_other_calls_are_left_to_the_other_ops(
    rows: int, hidden: int, rank_in: int, rank_out: int, dtype: torch.dtype, kind: str
) -> None:
    plan = block_plan(rows, hidden, 3072, rank_in, rank_out, dtype, kind)
    assert plan.tiles is None and plan.why and "\n" not in plan.why


def test_the_kernel_is_for_a_gpu() -> None:
    assert not block_takes(block_inputs(SMALL, torch.float16))


def test_a_plan_wants_sizes_and_a_known_device() -> None:
    with pytest.raises(InputError, match="at least 1"):
        block_plan(0, 768, 3072, 240, 240, BF16, "sm_90")
    with pytest.raises(InputError, match="device_kind"):
        block_plan(16384, 768, 3072, 240, 240, BF16, "hopper")


@pytest.mark.parametrize("processors", [1, 108, 132])
@pytest.mark.parametrize("rows", [1, 4097, 16384])
@pytest.mark.parametrize("hidden", [64, 256, 768, 1024, 1088, 2048])
@pytest.mark.parametrize("rank", [1, 128, 129, 256])
def test_tiles_hold_the_ranks_and_a_row(rank: int, hidden: int, rows: int, processors: int) -> None:
    tiles = block_tiles(rows, hidden, rank, 8, processors)
    assert tiles is not None
    assert rank <= tiles.rank and hidden <= tiles.norm_columns
    assert tiles.block_m % tiles.norm_rows == 0 and tiles.block_m == 16 * tiles.num_warps
    # Elements of a norm per thread: 128 spill.
    assert tiles.norm_rows * tiles.norm_columns // (32 * tiles.num_warps) <= 64
    # P's place, four tiles of weights, and the result turned around.
    shared = 2 * (tiles.block_m * tiles.rank + 4 * 64 * tiles.rank + 64 * tiles.block_m)
    assert shared + 1024 <= 227 << 10
