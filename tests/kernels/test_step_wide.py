"""The kernel of products of 2 to 16 sequences on Hopper: when it is taken, what it is made of, and on a GPU that has it
what it writes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from kernel_cases import guarded
from side_load import count_different
from step_cases import CASES, StepCase, mapped, step_program
from test_step_instructions import OPTIONS

from flashsvd.kernels.backend import Gpu
from flashsvd.kernels.gate import assert_close, check
from flashsvd.kernels.step import Embed, Product, Program, Rows, Scaled, Squares, launch, prepare_step
from flashsvd.kernels.step.tiles import wide_tiles

HALVES = (torch.float16, torch.bfloat16)
every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)


# Which kernel, and what it is given.


def rows_of(chain: launch.Chain) -> list[tuple[str, dict[str, Any]]]:
    """Names of the kernels of products, with their arguments."""
    kernels = {"row": launch.row_kernel, "block": launch.block_kernel, "wide": launch.wide_kernel}
    return [
        (name, given) for kernel, given, _ in chain.given() for name, one in kernels.items() if kernel is one
    ]


@pytest.mark.parametrize("major", [8, 9, 10])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 16, 17])
def test_hopper_takes_it_for_up_to_16_sequences_in_a_half_type(
    batch: int, dtype: torch.dtype, major: int
) -> None:
    program = step_program(StepCase("batch", batch=batch), dtype)
    wide = major == 9 and dtype != torch.float32 and 2 <= batch <= 16
    expected = "wide" if wide else "row" if batch == 1 else "block"
    assert {kernel for kernel, _ in rows_of(launch.Chain(program, Gpu(major, 0, 132)))} == {expected}


def test_the_interpreter_does_not_take_it() -> None:
    chain = launch.Chain(step_program(StepCase("batch", batch=2), torch.float16))
    assert torch.cuda.is_available() or {kernel for kernel, _ in rows_of(chain)} == {"block"}


@pytest.mark.parametrize("case", [case for case in CASES if 1 < case.batch < 17], ids=lambda case: case.name)
@pytest.mark.parametrize("width", [56, 4104, 16000])
def test_programs_cover_the_columns_and_have_room_for_their_sums(case: StepCase, width: int) -> None:
    program = mapped(step_program(dataclasses.replace(case, width=width), torch.float16), device="meta")
    chain = launch.Chain(program, Gpu(9, 0, 132))
    found = rows_of(chain)
    assert any(given["SPLITS"] > 1 for _, given in found) == (width > 56)
    for _, given in found:
        for chunks, eighths in (("CHUNKS", "width8"), ("CHUNKS_UP", "width_up8")):
            columns = given["SPLITS"] * given["BK"]
            assert (given[chunks] - 1) * columns < 8 * given[eighths] <= given[chunks] * columns
        blocks, kinds = math.ceil(given["rows"] / given["BN"]), 2 if given["GATED"] else 1
        assert chain.arrived.numel() >= blocks
        assert chain.sums.numel() >= blocks * given["SPLITS"] * kinds * given["BN"] * given["BM"]
        assert given["BM"] == 16 and given["BP"] >= given["squares_parts"]


# What Triton makes of it.

COMPILE = """
import dataclasses, json, sys, triton
from flashsvd.kernels.resources import compile_case
from flashsvd.kernels.step.compile_case import StepKernelCase
compiled, compile = [], triton.compile
triton.compile = lambda *args, **options: compiled.append(compile(*args, **options)) or compiled[-1]
for case in json.loads(sys.argv[1]):
    found = compile_case(StepKernelCase("wide", batch=16, **case), 90)
    print(json.dumps([dataclasses.asdict(found), compiled[-1].asm["ptx"]]))
"""


def compiled(cases: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Resources and PTX of cases for Hopper, from a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(cases)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def products(case: dict[str, Any]) -> tuple[int, int, bool]:
    """Rows and width of what a `StepKernelCase` multiplies, and whether by two."""
    hidden, width, rank = case["hidden"], case["width"], case["rank"]
    by_name = {
        "p": (3 * rank, hidden),
        "wide": (width, rank),
        "down": (rank, width),
        "residual": (hidden, rank),
    }
    return *by_name[case["instruction"]], case["instruction"] == "wide"


def test_all_of_the_first_weights_are_asked_for_before_the_wait() -> None:
    sizes = {"hidden": 4096, "width": 11008}
    cases: list[dict[str, Any]] = [
        {"instruction": name, "rank": rank, **sizes} for name, rank in (("residual", 1024), ("wide", 1496))
    ]
    for case, (found, ptx) in zip(cases, compiled(cases), strict=True):
        tiles = wide_tiles(*products(case)[:2], 132, gated=products(case)[2])
        before, after = ptx.split("griddepcontrol.wait", 1)
        loads = tiles.ahead * tiles.block_n * tiles.block_k // (8 * 32 * tiles.num_warps)
        assert before.count("ld.global.v4") == loads and found["kernel"] == "wide_kernel"
        # Nothing is worked on before, and nothing of the operands is moved after it.
        assert "mma.sync" not in before and "mma.sync" in after and "ldmatrix" not in ptx
        assert found["stack_bytes"] in (0, None)


@pytest.mark.long
def test_no_tiles_spill() -> None:
    models = (
        (256, 688),
        (896, 4864),
        (1536, 8960),
        (2048, 5632),
        (4096, 11008),
        (4096, 14336),
        (8192, 28672),
    )
    cases: dict[Any, dict[str, Any]] = {}
    limits = []
    for (hidden, width), rank, name in product(
        models, (64, 320, 1024, 1496, 4096), ("p", "wide", "down", "residual")
    ):
        case: dict[str, Any] = {"instruction": name, "hidden": hidden, "width": width, "rank": rank}
        rows, columns, gated = products(case)
        tiles = wide_tiles(rows, columns, 132, gated=gated)
        key = (name, tiles, math.ceil(columns / (tiles.splits * tiles.block_k)))
        if key not in cases:
            cases[key] = case | {"biased": gated}
            limits.append(tiles.registers)
    assert len({tiles for _, tiles, _ in cases}) >= 15
    for (found, _), limit, key in zip(compiled(list(cases.values())), limits, cases, strict=True):
        if found["registers"] is not None:
            assert found["stack_bytes"] == 0 and found["registers"] <= limit, key


# What it writes.


@dataclasses.dataclass(frozen=True)
class Form:
    """A product, or two, as `OPTIONS` of the tests of instructions say."""

    rows: int
    width: int
    width_up: int
    hidden: int
    options: str = "plain"
    batch: int = 16
    out_dtype: torch.dtype | None = None
    activation: str = "silu"


SIZES = {
    "one step": (40, 16, 72, 24),
    "odd": (1000, 1496, 1000, 776),
    "shares": (72, 4104, 2056, 4872),
    "a layer's": (3072, 4096, 4096, 4096),
}
"""Rows, widths of the two products, and of a hidden state that is read instead where it is normed."""


def program_of(form: Form, dtype: torch.dtype, device: str) -> Program:
    """An embedding, the product, and one that reads what it leaves for a norm. Everything lies inside NaN."""
    generator = torch.Generator(device).manual_seed(form.rows)
    activated, gated, biased, normed, added, following = OPTIONS[form.options]

    def draw(*shape: int, scale: float = 1.0, around: bool = True) -> torch.Tensor:
        drawn = (torch.randn(*shape, generator=generator, device=device) * scale).to(dtype)
        return guarded(drawn, 8, 8) if around else drawn

    def out(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.full(shape, math.nan, dtype=dtype, device=device)

    batch, rows, hidden = form.batch, form.rows, form.hidden
    x, scaled = out(batch, hidden), out(batch, hidden)
    squares = Squares(out(batch, max(64, hidden), dtype=torch.float32), hidden)
    gain = 1 + draw(hidden, scale=0.3, around=False)
    steps: list[Any] = [Embed(draw(batch, hidden, around=False), None, 0, x, Scaled(gain, scaled, squares))]
    both = []
    for is_normed, is_biased, columns in zip(normed, biased, (form.width, form.width_up), strict=True):
        source = scaled if is_normed else draw(batch, columns)
        weight = draw(rows, source.shape[1], scale=source.shape[1] ** -0.5)
        bias = draw(rows, around=False) if is_biased else None
        both.append(Product(source, weight, bias, squares if is_normed else None))
    held = out(batch, rows + 24, dtype=form.out_dtype or dtype)
    # What is added and left for a norm lies as the output does.
    residual, left = (out(batch, rows + 24, dtype=one.dtype) for one in (held, scaled))
    residual[:, 7:-17] = draw(batch, rows, around=False)
    left_for = Scaled(
        1 + draw(rows, scale=0.3, around=False),
        left[:, 8:-16] if following else left,
        Squares(out(batch, max(64, rows), dtype=torch.float32), rows),
    )
    first = 8 if following else 7
    steps.append(
        Rows(
            both[0],
            held[:, first : first + rows],
            activated,
            both[1] if gated else None,
            residual[:, 7:-17] if added else None,
            left_for if following else None,
        )
    )
    if following:
        reader = Product(left_for.scaled, draw(24, rows, scale=rows**-0.5), None, left_for.squares)
        steps.append(Rows(reader, out(batch, 24)))
    tokens = torch.arange(batch, device=device)
    place = torch.zeros((), dtype=torch.int32, device=device)
    return Program(tuple(steps), tokens, place, tokens.to(torch.int32), None, 1, 1e-2, form.activation)


def written(program: Program) -> dict[str, torch.Tensor]:
    step = program.instructions[1]
    assert isinstance(step, Rows)
    found = {"out": step.out}
    if step.next is not None:
        found |= {"scaled": step.next.scaled, "read": program.instructions[2].out}
    return found


def expectations(
    form: Form, dtype: torch.dtype, device: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The definition in fp64, and in the dtype."""
    plain = program_of(form, dtype, device)
    exact = mapped(plain, torch.float64, device)
    for program in (exact, plain):
        prepare_step(program, "naive")()
    return written(exact), written(plain)


BUGS: dict[str, Callable[[Product], Product]] = {
    "the last columns": lambda p: dataclasses.replace(p, x=p.x[:, :-8], weight=p.weight[:, :-8]),
    "a row": lambda p: dataclasses.replace(p, weight=torch.cat([p.weight[1:], p.weight[-1:]])),
    "a sequence": lambda p: dataclasses.replace(p, x=torch.cat([p.x[1:], p.x[-1:]])),
    "a bias": lambda p: dataclasses.replace(p, bias=None),
}


@pytest.mark.parametrize("bug", BUGS)
@every_half
def test_what_is_forgotten_does_not_pass(bug: str, dtype: torch.dtype) -> None:
    form = Form(*SIZES["odd"], "all")
    exact, plain = expectations(form, dtype, "cpu")
    program = program_of(form, dtype, "cpu")
    embed, step, *rest = program.instructions
    assert isinstance(step, Rows) and step.up is not None
    wrong = dataclasses.replace(step, up=BUGS[bug](step.up))
    program = dataclasses.replace(program, instructions=(embed, wrong, *rest))
    prepare_step(program, "naive")()
    assert not any(check(found, exact[name], plain[name]).passed for name, found in written(program).items())


@pytest.fixture
def hopper() -> Iterator[None]:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs compute capability 9")
    yield


def assert_passes(form: Form, dtype: torch.dtype) -> None:
    """The gate, what is around the output, counters, and the same bits again."""
    exact, plain = expectations(form, dtype, "cuda")
    program = program_of(form, dtype, "cuda")
    chain: Any = prepare_step(program, "triton")
    assert {kernel for kernel, _ in rows_of(chain)} == {"wide"}
    chain()
    for name, found in written(program).items():
        assert_close(found, exact[name], plain[name], f"{name} of {form}")
        columns = found.shape[1]
        whole = found if found._base is None else found._base
        assert whole.isfinite().sum() == len(found) * columns, name

    def again() -> torch.Tensor:
        for out in written(program).values():
            out.fill_(math.nan)
        chain()
        return torch.cat([out.float().flatten() for out in written(program).values()])

    assert count_different(again, again(), 5) == 0 and not chain.arrived.any()


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@every_half
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_definition(size: str, options: str, dtype: torch.dtype) -> None:
    for batch in (2, 3, 8, 16):
        assert_passes(Form(*SIZES[size], options, batch), dtype)


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@every_half
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "gelu_tanh"])
def test_every_activation(activation: str, dtype: torch.dtype) -> None:
    assert_passes(Form(*SIZES["odd"], "activated", 5, activation=activation), dtype)


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@every_half
@pytest.mark.parametrize(
    ("rows", "width"),
    [(1, 8), (7, 264), (33, 520), (4097, 1032), (4096, 1496), (6144, 72), (9001, 2056), (1496, 11008)],
)
@pytest.mark.parametrize("options", ["plain", "two products, no activation"])
def test_any_size_is_the_definition_with_an_output_in_fp32(
    options: str, rows: int, width: int, dtype: torch.dtype
) -> None:
    assert_passes(Form(rows, width, width + 264, 24, options, 11, torch.float32), dtype)


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
def test_an_infinity_stays_in_its_sequence() -> None:
    program = program_of(Form(*SIZES["shares"], batch=3), torch.bfloat16, "cuda")
    step = program.instructions[1]
    assert isinstance(step, Rows)
    run = prepare_step(program, "triton")
    run()
    expected = step.out.clone()
    step.product.x[1, -1] = math.inf
    run()
    assert not step.out[1].isfinite().any()
    assert torch.equal(step.out[[0, 2]], expected[[0, 2]])
