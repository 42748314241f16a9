"""The step op: whole programs in the interpreter and by the definition, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import skip_without_interpreter
from step_cases import CASES, StepCase, mapped, results, step_program

from flashsvd.errors import InputError
from flashsvd.kernels.backend import Gpu
from flashsvd.kernels.gate import LIMITS, assert_close, check, relative_error
from flashsvd.kernels.step import MOST_ROWS, Attend, HeadFactor, Heads, Program, Rows, launch, prepare_step

EASY = StepCase("two layers", ranks=(24, 16), bias=True, batch=2, padded=True, window=30)


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Any:
    """What is interpreted takes as long as there are programs: shares for a small GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "INTERPRETED", launch.INTERPRETED._replace(multiprocessors=3))
        yield


def standards(case: StepCase, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a step leaves by the definition, in fp64 and in the dtype."""
    wide, plain = mapped(step_program(case, dtype), torch.float64), step_program(case, dtype)
    for program in (wide, plain):
        prepare_step(program, "naive")()
    return results(wide), results(plain)


def assert_is_the_definition(case: StepCase, dtype: torch.dtype) -> None:
    reference, plain = standards(case, dtype)
    program = step_program(case, dtype)
    prepare_step(program, "interpret")()
    for name, found in results(program).items():
        assert_close(found.to(dtype), reference[name], plain[name].to(dtype), name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_triton_source_is_the_definition(case: StepCase, dtype: torch.dtype) -> None:
    skip_without_interpreter("interpret")
    assert_is_the_definition(case, dtype)


@st.composite
def small_cases(draw: st.DrawFn) -> StepCase:
    eights = st.integers(1, 3).map(lambda n: 8 * n)
    kv_heads = draw(st.sampled_from([1, 2]))
    place = draw(st.integers(0, 40))
    return StepCase(
        "drawn",
        batch=draw(st.integers(1, 5)),
        hidden=draw(eights),
        width=draw(eights),
        heads=kv_heads * draw(st.sampled_from([1, 2, 3])),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([8, 16, 24])),
        ranks=(draw(eights),),
        whole=draw(st.booleans()),
        bias=draw(st.booleans()),
        window=draw(st.none() | st.integers(0, 45)),
        shares=draw(st.sampled_from([1, 2, 3])),
        place=place,
        capacity=place + 1 + draw(st.integers(0, 3)),
        padded=draw(st.booleans()),
        vocabulary=draw(st.integers(1, 20)),
    )


@settings(max_examples=8)
@given(small_cases())
def test_any_shape_is_the_definition(case: StepCase) -> None:
    skip_without_interpreter("interpret")
    # Of a few numbers plain torch may happen to make none wrong, so twice its error says nothing.
    reference, _ = standards(case, torch.float32)
    program = step_program(case, torch.float32)
    prepare_step(program, "interpret")()
    for name, found in results(program).items():
        assert relative_error(found, reference[name]) < LIMITS[torch.float32], name


def test_a_step_after_another_starts_anew() -> None:
    """Counters are zero again, and nothing of the step before is read but the caches."""
    skip_without_interpreter("interpret")
    case = StepCase("wide", hidden=16, width=520, batch=2, shares=1, place=40, capacity=41)
    program = step_program(case, torch.float32)
    chain: Any = prepare_step(program, "interpret")
    chain()
    first = {name: found.clone() for name, found in results(program).items()}
    assert not chain.arrived.any() and chain.launches == len(program.instructions)
    for step in program.instructions:
        if not isinstance(step, Heads):
            step.out.fill_(float("nan"))
    chain()
    assert all(torch.equal(found, first[name]) for name, found in results(program).items())


@pytest.mark.parametrize(("major", "chained"), [(8, False), (9, True), (10, True)])
def test_kernels_begin_before_others_have_ended_where_a_gpu_can(major: int, chained: bool) -> None:
    """Programmatic dependent launch came with compute capability 9."""
    for case in (CASES[0], CASES[-4]):
        for _, arguments, options in launch.Chain(
            step_program(case, torch.float32), Gpu(major, 0, 108)
        ).given():
            assert arguments["CHAINED"] is chained and options.get("launch_pdl", False) is chained


def changed(program: Program, kind: type, change: Callable[[Any], Any], which: int = 0) -> Program:
    """The program with one instruction of a kind exchanged."""
    steps = list(program.instructions)
    place = [index for index, step in enumerate(steps) if isinstance(step, kind)][which]
    steps[place] = change(steps[place])
    return dataclasses.replace(program, instructions=tuple(steps))


def without_last_columns(step: Any) -> Any:
    product = step.product
    cut = dataclasses.replace(product, x=product.x[:, :-8], weight=product.weight[:, :-8])
    return dataclasses.replace(step, product=cut)


def without_last_rows(step: Any) -> Any:
    factor = step.factors[0]
    cut = HeadFactor(factor.column, factor.u[:-8], factor.at)
    return dataclasses.replace(step, factors=(cut, *step.factors[1:]))


BUGS: dict[str, Callable[[Program], Program]] = {
    "the last columns of a product": lambda p: changed(p, Rows, without_last_columns, 1),
    "the last rank of a head": lambda p: changed(p, Heads, without_last_rows),
    "a bias": lambda p: changed(p, Attend, lambda step: dataclasses.replace(step, bias=None)),
    "the bound of a window": lambda p: changed(p, Attend, lambda step: dataclasses.replace(step, window=7)),
    "the scale": lambda p: changed(p, Attend, lambda step: dataclasses.replace(step, scale=0.249)),
    "the residual": lambda p: changed(p, Rows, lambda step: dataclasses.replace(step, added=None), 2),
    "what a norm divides by": lambda p: changed(
        p,
        Rows,
        lambda step: dataclasses.replace(step, product=dataclasses.replace(step.product, normed=None)),
    ),
    "eps": lambda p: dataclasses.replace(p, eps=1e-3),
    "the turns": lambda p: dataclasses.replace(p, turns=None),
    "padding": lambda p: dataclasses.replace(p, first=torch.zeros_like(p.first)),
    "the activation": lambda p: dataclasses.replace(p, activation="gelu"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("forgotten", BUGS)
def test_what_is_forgotten_does_not_pass(forgotten: str, dtype: torch.dtype) -> None:
    reference, plain = standards(EASY, dtype)
    program = BUGS[forgotten](step_program(EASY, dtype))
    prepare_step(program, "naive")()
    found = {name: out.to(dtype) for name, out in results(program).items()}
    passed = [check(found[name], reference[name], plain[name].to(dtype)).passed for name in found]
    assert not all(passed)


def test_backends_without_triton_are_the_definition() -> None:
    kept = []
    for backend in ("naive", "torch", None):
        program = step_program(EASY, torch.float32)
        prepare_step(program, backend if not torch.cuda.is_available() else "naive")()
        kept.append(results(program))
    assert all(torch.equal(found[name], kept[0][name]) for found in kept for name in found)


def with_rows(step: Any, **parts: torch.Tensor) -> Any:
    return dataclasses.replace(step, product=dataclasses.replace(step.product, **parts))


def apart(tensor: torch.Tensor) -> torch.Tensor:
    """The same size, its rows further apart."""
    return torch.zeros(tensor.shape[0], tensor.shape[1] + 8)[:, : tensor.shape[1]]


ODD = "widths and strides in multiples of 8 and rows that start on 16 bytes"
WRONG: dict[str, tuple[Callable[[Program], Program], str]] = {
    "columns": (
        lambda p: changed(
            p, Rows, lambda s: with_rows(s, x=s.product.x[:, :-4], weight=s.product.weight[:, :-4])
        ),
        ODD,
    ),
    "a stride": (
        lambda p: changed(p, Rows, lambda s: with_rows(s, weight=torch.zeros(48, 36)[:, :32])),
        rf"{ODD}, got shape \[48, 32\] and strides \[36, 1\]; pad them with zeros",
    ),
    "where rows start": (
        lambda p: changed(p, Rows, lambda s: with_rows(s, weight=torch.zeros(48 * 32 + 1)[1:].view(48, 32))),
        ODD,
    ),
    "columns of weights": (
        lambda p: changed(p, Rows, lambda s: with_rows(s, weight=torch.zeros(32, 48).T)),
        ODD,
    ),
    "a cache": (
        lambda p: changed(p, Attend, lambda s: dataclasses.replace(s, k_cache=s.k_cache[..., :12])),
        "widths of the caches must be multiples of 8, got 12, 16",
    ),
    "P": (lambda p: changed(p, Heads, lambda s: dataclasses.replace(s, p=torch.zeros(2, 76)[:, :72])), ODD),
    "a factor": (
        lambda p: changed(
            p, Heads, lambda s: dataclasses.replace(s, factors=(HeadFactor(0, torch.zeros(16, 24).T, 0),))
        ),
        r"factors of heads must be contiguous \[rank, 16\] .* got shape \[24, 16\] and strides \[1, 24\]",
    ),
    "heads of two widths": (
        lambda p: changed(
            p,
            Heads,
            lambda s: dataclasses.replace(s, factors=(*s.factors, HeadFactor(0, torch.zeros(24, 8), 0))),
        ),
        r"factors of heads must be contiguous \[rank, 16\]",
    ),
    "what is added": (
        lambda p: changed(p, Rows, lambda s: dataclasses.replace(s, added=apart(s.added)), 2),
        r"must lie as out does, strides \[32, 1\], got \[40, 1\]",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_kernels_cannot_read_is_refused(what: str) -> None:
    skip_without_interpreter("interpret")
    change, said = WRONG[what]
    with pytest.raises(InputError, match=said) as error:
        prepare_step(change(step_program(EASY, torch.float32)), "interpret")
    assert "\n" not in str(error.value)


def test_more_sequences_than_the_kernels_take_are_refused() -> None:
    skip_without_interpreter("interpret")
    case = StepCase("many", batch=MOST_ROWS + 1)
    with pytest.raises(InputError, match=r"takes up to 64 sequences, got 65; use backend 'torch'$"):
        prepare_step(step_program(case, torch.float32), "interpret")
    program = step_program(case, torch.float32)
    prepare_step(program, "torch")()
    assert results(program)["logits"].isfinite().all()
