"""Heads rebuilt and turned in one pass: every backend against complex numbers in fp64, and planted bugs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from call_lists import ENDURANCE, SANITIZED
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_calls import KernelCall, floats_mapped, mapped
from kernel_cases import CPU_BACKENDS, DTYPES, GPU_DTYPES, guarded, skip_without_interpreter
from rebuild_cases import RebuildCase, RebuildInputs, rebuild_inputs

from flashsvd.errors import InputError
from flashsvd.kernels.gate import assert_close, check, relative_error
from flashsvd.kernels.rebuild import Run, rebuild_rotated
from flashsvd.kernels.rebuild.tiles import rebuild_takes, rebuild_tiles
from flashsvd.kernels.starter import Launch

CASES = (
    RebuildCase(2, 17, (32,) * 6, 64),
    RebuildCase(1, 1, (8, 16), 32, bias=False),
    RebuildCase(3, 63, (40, 40, 24, 8, 8), 32, own=True, others=24),
    RebuildCase(2, 97, (72, 8, 8), 96, bias=False, others=8),
    RebuildCase(1, 33, (56, 16), 256, own=True),
)
"""What the kernel takes, in every dtype but fp64."""


def reference(x: RebuildInputs) -> torch.Tensor:
    """fp64: one block-diagonal product, and its pairs as complex numbers, times those of the angles."""
    half = x.second.shape[1] // 2
    ranks = [run.rank for run in x.runs for _ in range(run.count)]
    wide = torch.block_diag(*x.second.double().split(ranks))
    heads = x.p[..., : wide.shape[0]].double() @ wide
    heads = (heads if x.bias is None else heads + x.bias.double()).unflatten(-1, (-1, 2 * half))
    turn = torch.complex(x.cos[..., :half].double(), x.sin[..., :half].double())[:, :, None]
    turned = torch.complex(heads[..., :half], heads[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], -1).flatten(-2)


def fenced(x: RebuildInputs, device: str = "cpu") -> RebuildInputs:
    """The same call inside NaN, which is in p's other columns and in the angles' second half too."""
    x = mapped(x, lambda tensor: tensor.to(device, copy=True))
    x.rows[:, x.runs[-1].columns.stop :] = float("nan")
    for part in (x.cos, x.sin):
        part[..., part.shape[-1] // 2 :] = float("nan")
    return mapped(x, lambda tensor: guarded(tensor, 8, 8))


def gate(x: RebuildInputs, backend: str | None, device: str = "cpu") -> None:
    given = fenced(x, device)
    before = given.rows.clone()
    out = given.run(backend)
    assert out.is_contiguous() and out.dtype == x.p.dtype
    assert_close(out, reference(x), x.run("naive").to(device))
    assert torch.equal(given.rows.nan_to_num(7.0), before.nan_to_num(7.0))


@st.composite
def calls(draw: st.DrawFn) -> tuple[RebuildCase, torch.dtype, torch.dtype | None]:
    dtype, angle_dtype = draw(st.sampled_from(DTYPES)), draw(st.sampled_from((None, torch.float32)))
    # Half of the calls are such that the kernel takes them.
    unit, heads = draw(st.sampled_from((1, 8))), st.integers(1, 3)
    ranks = st.integers(1, 5).map(lambda count: count * unit)
    runs = draw(st.lists(st.tuples(heads, ranks), min_size=2, max_size=4))
    case = RebuildCase(
        draw(st.integers(1, 3)),
        draw(st.sampled_from((1, 2, 15, 17, 33, 65))),
        tuple(rank for count, rank in runs for _ in range(count)),
        draw(st.sampled_from((32, 64, 96) if unit == 8 else (2, 6, 16, 32, 80))),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from((0, unit, 3 * unit))),
    )
    # Of four numbers, plain torch's may all be rounded right by luck, and the gate then asks as much of the op.
    assume(case.batch * case.seq * len(case.ranks) * case.head_dim >= 100)
    return case, dtype, angle_dtype


@given(calls())
@settings(max_examples=40)
@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_any_shape_passes_the_gate(
    backend: str, call: tuple[RebuildCase, torch.dtype, torch.dtype | None]
) -> None:
    skip_without_interpreter(backend)
    gate(rebuild_inputs(*call), backend)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_passes_the_gate_and_leaves_p_as_it_is(case: RebuildCase, dtype: torch.dtype, backend: str) -> None:
    skip_without_interpreter(backend)
    gate(rebuild_inputs(case, dtype), backend)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_float64_stays_float64(case: RebuildCase, backend: str) -> None:
    skip_without_interpreter(backend)
    given = rebuild_inputs(case, torch.float64)
    out = given.run(backend)
    assert out.dtype == torch.float64 and relative_error(out, reference(given)) < 1e-14


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_no_token_is_no_work(backend: str) -> None:
    skip_without_interpreter(backend)
    for case in (CASES[0]._replace(seq=0), CASES[0]._replace(batch=0)):
        out = rebuild_inputs(case, torch.float32).run(backend)
        assert out.shape == (case.batch, case.seq, 6 * 64)


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_rows_may_be_of_any_distance(backend: str) -> None:
    """Where there is one sequence or one token, the other stride says nothing."""
    skip_without_interpreter(backend)
    for batch, seq in ((1, 5), (5, 1)):
        x = rebuild_inputs(RebuildCase(batch, seq, (8, 8), 32), torch.float32)
        wide = torch.full((9, 24), float("nan"))
        strides = (7, 24, 1) if batch == 1 else (24, 7, 1)
        p = torch.as_strided(wide, (batch, seq, 16), strides)
        p.copy_(x.p)
        assert (
            relative_error(rebuild_rotated(**x.arguments() | {"p": p}, backend=backend), reference(x)) < 1e-6
        )


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are started from here on."""
    started: list[str] = []
    through = Launch._through_triton

    def record(launch: Launch, arguments: tuple[object, ...]) -> None:
        started.append(launch._kernel.__name__)
        through(launch, arguments)

    monkeypatch.setattr(Launch, "_through_triton", record)
    return started


def test_one_launch_per_run_and_the_rotary_kernel_elsewhere(launches: list[str]) -> None:
    skip_without_interpreter("interpret")
    for ranks, expected in (
        ((16,) * 4, ["rebuild_kernel"]),
        ((16, 16, 8, 16), ["rebuild_kernel"] * 3),
        ((12, 12), ["rotary_kernel"]),
    ):
        launches.clear()
        rebuild_inputs(RebuildCase(1, 3, ranks, 32), torch.float16).run("interpret")
        assert launches == expected


def test_what_the_kernel_takes() -> None:
    def takes(dtype: torch.dtype, case: RebuildCase, start: int = 0, width: int = 80) -> bool:
        held = torch.zeros(9 * width + start, dtype=dtype)[start:]
        rows = held.view(9, width)[:, : sum(case.ranks)]
        return rebuild_takes(rows, torch.zeros(sum(case.ranks), case.head_dim, dtype=dtype), case.runs)

    sound = RebuildCase(1, 9, (32, 8), 64)
    for dtype in GPU_DTYPES:
        assert takes(dtype, sound)
        half = dtype != torch.float32
        for loose in (sound._replace(ranks=(8, 20)), sound._replace(head_dim=48), sound._replace(head_dim=2)):
            assert takes(dtype, loose) != half
        assert takes(dtype, sound, start=1) != half and takes(dtype, sound, start=8)
        assert takes(dtype, sound, width=82) != half and takes(dtype, sound, width=88)
        assert not takes(dtype, sound._replace(ranks=(136, 8)), width=144)
    assert takes(torch.bfloat16, sound._replace(ranks=(128, 64), head_dim=256), width=192)
    assert not takes(torch.bfloat16, sound._replace(ranks=(136, 64), head_dim=256), width=200)
    assert not takes(torch.float64, sound)


@pytest.mark.parametrize(
    "call", [call for call in (*ENDURANCE, *SANITIZED) if call.kernel == "rebuild"], ids=lambda call: call.id
)
def test_the_kernel_takes_the_calls_that_others_make_of_it(call: KernelCall) -> None:
    for dtype in call.dtypes:
        given: RebuildInputs = floats_mapped(call.inputs(dtype), call.fence)
        assert rebuild_takes(given.rows, given.second, given.runs)


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("rank", [1, 8, 32, 40, 128])
@pytest.mark.parametrize("head_dim", [2, 32, 64, 80, 128, 256])
def test_groups_divide_the_heads_and_every_thread_loads_16_bytes(
    head_dim: int, rank: int, dtype: torch.dtype
) -> None:
    for count in (24, 7, 40, 1):
        tiles = rebuild_tiles(count, rank, head_dim, dtype)
        assert count % tiles.group == 0
        assert tiles.block_r >= rank and tiles.block_h >= head_dim // 2
        assert all(size % 16 == 0 for size in (tiles.block_m, tiles.block_r, tiles.block_h))
        if dtype != torch.float32:
            smallest = tiles.block_r * min(tiles.block_m, tiles.block_h)
            assert smallest * dtype.itemsize >= 16 * 32 * tiles.num_warps


@pytest.mark.parametrize("bug", ["sign", "position", "bias", "factor", "rank", "last token", "head"])
def test_the_gate_sees_a_planted_bug(bug: str) -> None:
    x = rebuild_inputs(CASES[2], torch.float16)
    bias = x.bias
    assert bias is not None
    plain = x.run("naive")
    broken = {
        "sign": lambda: replace(x, sin=-x.sin).run(None),
        "position": lambda: replace(x, cos=x.cos.roll(1, 1)).run(None),
        "bias": lambda: replace(x, bias=bias.roll(1, 0)).run(None),
        "factor": lambda: replace(x, factors=x.factors.roll(32)).run(None),
        "rank": lambda: replace(x, rows=x.rows.index_fill(1, torch.tensor([39]), 0)).run(None),
        "last token": lambda: torch.cat([plain[:, :-1], plain[:, -1:] * 1.02], 1),
        "head": lambda: torch.cat([plain[..., 32:64], plain[..., :32], plain[..., 64:]], -1),
    }[bug]()
    assert check(plain, reference(x), plain).passed
    assert not check(broken, reference(x), plain).passed


def test_bad_arguments_are_one_line() -> None:
    x = rebuild_inputs(RebuildCase(2, 9, (4, 4, 6), 8, others=3), torch.float32)
    one, two = x.runs

    def call(**change: Any) -> torch.Tensor:
        return rebuild_rotated(**x.arguments() | change)

    for change, words in (
        ({"p": x.p[0]}, r"p must be \[B, S, R\]"),
        ({"p": x.p[..., :13]}, "the 14 columns that the runs name, got 13"),
        ({"p": x.p.mT.contiguous().mT}, "last stride 1"),
        ({"p": x.p.transpose(0, 1).contiguous().transpose(0, 1)}, "at equal distance"),
        ({"p": [0.0]}, "p must be a tensor"),
        ({"p": x.p.long()}, "p must be float16"),
        ({"second": x.second[:13]}, r"second must have shape \[14, 8\]"),
        ({"second": x.second[:, :7]}, "even head dim"),
        ({"second": torch.zeros(14, 258)}, "from 2 to 256"),
        ({"second": torch.zeros(14, 16)[:, :8]}, "second must be contiguous"),
        ({"second": x.second.half()}, "second is torch.float16"),
        ({"second": x.second.to("meta")}, "second is on meta"),
        ({"bias": torch.zeros(8)}, r"bias must have shape \[24\]"),
        ({"bias": torch.zeros(48)[::2]}, "bias must be contiguous"),
        ({"cos": x.cos[:, :5]}, r"cos must be \[2 or 1, 9, 8\]"),
        ({"cos": x.cos[..., :4]}, r"cos must be \[2 or 1, 9, 8\]"),
        ({"cos": x.cos.to("meta"), "sin": x.sin.to("meta")}, "cos is on meta but p on cpu"),
        ({"sin": x.sin[..., :4]}, "sin must have shape"),
        ({"sin": x.sin.half()}, "sin is torch.float16 but cos"),
        ({"runs": (two, one)}, "from head 0 and column 0"),
        ({"runs": (one, replace(two, at=9))}, "from head 2 and column 8"),
        ({"runs": (one, replace(two, count=0))}, "a count and a rank of at least 1"),
        ({"runs": (Run(0, 1, 14, 0),)}, "two heads at least"),
        ({"runs": ()}, "two heads at least, one of q and one of k, got 0"),
        ({"runs": (one, (2, 1, 6, 8))}, "must be a sequence of Run"),
        ({"runs": 3}, "must be a sequence of Run"),
        ({"backend": "cuda"}, "naive, torch, triton, interpret"),
    ):
        # Refused after a good call too.
        call()
        with pytest.raises(InputError, match=words) as caught:
            call(**change)
        assert "\n" not in str(caught.value)


def test_runs_may_be_a_list() -> None:
    x = rebuild_inputs(CASES[2], torch.float32)
    for _ in range(2):
        assert torch.equal(rebuild_rotated(**x.arguments() | {"runs": list(x.runs)}), x.run(None))


@pytest.mark.parametrize("backend", ["naive", *CPU_BACKENDS])
def test_no_gradients_are_recorded(backend: str) -> None:
    skip_without_interpreter(backend)
    x = rebuild_inputs(CASES[0], torch.float32)
    x.rows.requires_grad_(), x.factors.requires_grad_()
    assert not x.run(backend).requires_grad


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        *CASES,
        RebuildCase(8, 512, (32,) * 24, 64, bias=False, others=384),
        RebuildCase(8, 511, (32,) * 24, 64, others=384),
        RebuildCase(3, 1025, (40,) * 12 + (24,) * 12, 64, own=True, others=8),
        RebuildCase(5, 129, (8,) * 9 + (64,) * 3, 64),
        RebuildCase(2, 257, (16, 48, 80, 128) * 2, 128, own=True),
        RebuildCase(1, 33, (104, 128), 256),
        RebuildCase(3, 63, (7, 59, 1), 80),
    ],
    ids=lambda case: case.name,
)
def test_triton_passes_the_gate(case: RebuildCase, dtype: torch.dtype) -> None:
    gate(rebuild_inputs(case, dtype), "triton", "cuda")
    gate(rebuild_inputs(case, dtype, torch.float32), "triton", "cuda")
