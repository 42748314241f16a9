"""The step op: its definition, the Triton source in the interpreter, and the kernel on a GPU."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import skip_without_interpreter
from step_cases import CASES, StepCase, mapped, results, step_program

from flashsvd.kernels.gate import assert_close
from flashsvd.kernels.step import prepare_step


def _standards(case: StepCase, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    wide, plain = mapped(step_program(case, dtype), torch.float64), step_program(case, dtype)
    for program in (wide, plain):
        prepare_step(program, "naive")()
    return results(wide), results(plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_triton_source_is_the_definition(case: StepCase, dtype: torch.dtype) -> None:
    skip_without_interpreter("interpret")
    reference, plain = _standards(case, dtype)
    program = step_program(case, dtype)
    prepare_step(program, "interpret")()
    for name, found in results(program).items():
        assert_close(found.to(dtype), reference[name], plain[name].to(dtype), name)
