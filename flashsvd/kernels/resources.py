"""What a kernel takes of a GPU, found by compiling it for one that need not be there.

Shared memory comes from Triton's metadata; registers, stack and spills from the `cuobjdump` inside the triton
wheel. All of them differ by Triton version, so every row carries it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.attention.compile_case import AttentionCase, attention_cases
from flashsvd.kernels.backend import interpreting
from flashsvd.kernels.ffn.hopper_case import HopperCase, hopper_cases
from flashsvd.kernels.ffn.tiles import ffn_tiles
from flashsvd.kernels.ffn_block.hopper_case import BlockCase, block_cases
from flashsvd.kernels.gluon_case import SM as HOPPER
from flashsvd.kernels.linear.hopper_case import LinearCase, linear_cases
from flashsvd.kernels.rank_space.compile_case import RankSpaceCase, rank_space_cases
from flashsvd.kernels.rank_space.hopper_case import RankSpaceHopperCase, rank_space_hopper_cases
from flashsvd.kernels.rebuild.compile_case import RebuildCase, rebuild_cases
from flashsvd.kernels.step.compile_case import StepKernelCase, step_cases
from flashsvd.kernels.tiles import shared_limit_bytes

_TYPE_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes of one kind of GPU; None where no tool could tell."""

    kernel: str
    case: str
    sm: int
    num_warps: int
    shared_bytes: int
    registers: int | None
    """Per thread."""
    stack_bytes: int | None
    """Per thread; above 0, registers were spilled."""
    triton_version: str
    tensor_columns: int = 0
    """Of tensor memory, where the architecture has such."""


@dataclass(frozen=True)
class FfnCase:
    """One way to compile the feed-forward kernel, for the tiles that a launch on that GPU would take."""

    name: str
    dtype: torch.dtype
    rank_in: int
    rank_out: int
    activation: str
    width: int = 3072
    biased: bool = True
    rows: int = 16384
    rank_up: int = 0
    """Of the second branch; 0 when not gated."""
    out_width: int = 0
    """Of the output factor; 0 without one."""
    multiprocessors: int = 132


GluonCase = HopperCase | BlockCase | RankSpaceHopperCase | LinearCase
Case = AttentionCase | FfnCase | RankSpaceCase | RebuildCase | StepKernelCase | GluonCase


def default_cases() -> tuple[Case, ...]:
    """A spread over dtypes, dense and low rank, odd ranks, masks and rank loops."""
    return (
        *attention_cases(),
        FfnCase("bf16 R1 240 R2 240 gelu", torch.bfloat16, 240, 240, "gelu"),
        FfnCase("fp16 R1 59 R2 40 relu", torch.float16, 59, 40, "relu"),
        FfnCase("bf16 R1 768 R2 768 gelu_tanh", torch.bfloat16, 768, 768, "gelu_tanh"),
        FfnCase("fp32 R1 96 R2 256 gelu", torch.float32, 96, 256, "gelu"),
        FfnCase("bf16 R1 192 R2 192 gelu", torch.bfloat16, 192, 192, "gelu"),
        FfnCase("bf16 R1 240 R2 512 relu", torch.bfloat16, 240, 512, "relu"),
        FfnCase("bf16 swiglu 128 128 128", torch.bfloat16, 128, 128, "silu", rank_up=128, biased=False),
        FfnCase("bf16 geglu 240 192 240", torch.bfloat16, 240, 240, "gelu", rank_up=192),
        FfnCase("fp32 swiglu 64 64 64", torch.float32, 64, 64, "silu", rank_up=64),
        FfnCase("bf16 v2 R1 128 R2 128", torch.bfloat16, 128, 128, "gelu", out_width=768),
        FfnCase("fp16 v2 swiglu odd", torch.float16, 59, 7, "silu", rank_up=40, out_width=100, width=100),
        *rank_space_cases(),
        *hopper_cases(),
        *block_cases(),
        *rank_space_hopper_cases(),
        *linear_cases(),
        *rebuild_cases(),
        *step_cases(),
    )


def compile_case(case: Case, sm: int) -> Resources:
    """Compile one case for compute capability `sm` (80 for 8.0, 90 for 9.0); no GPU is needed or touched.

    Raises InputError in a process that interprets Triton, where nothing compiles.
    """
    source, launch = case_source(case, sm)
    return source_resources(case.name, sm, launch, source)


def case_source(case: Case, sm: int) -> tuple[Any, dict[str, int]]:
    """What Triton compiles of a case for a compute capability, and its launch options.

    Raises InputError in a process that interprets Triton, where nothing compiles.
    """
    if interpreting():
        raise InputError("TRITON_INTERPRET=1 is set, so nothing compiles; unset it and start again")
    from triton.compiler import ASTSource

    if isinstance(case, GluonCase):
        return case.source()
    if isinstance(case, StepKernelCase):
        return case.source(sm)
    fn, constants, launch = _ffn(case, sm) if isinstance(case, FfnCase) else case.kernel()
    signature = {
        name: "constexpr" if name in constants else _argument_type(name, case.dtype) for name in fn.arg_names
    }
    aligned = [["tt.divisibility", 16]]
    attrs = {
        (i,): aligned
        for i, name in enumerate(fn.arg_names)
        if signature[name].startswith("*") or name in _aligned_numbers(case)
    }
    return ASTSource(fn, signature, constants, attrs), launch


def source_resources(name: str, sm: int, launch: dict[str, int], source: Any) -> Resources:
    """Compiles what `case_source` gives."""
    import triton
    from triton.backends.compiler import GPUTarget

    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=launch)
    registers, stack = _registers_and_stack(compiled.asm["cubin"])
    return Resources(
        kernel=source.fn.__name__,
        case=name,
        sm=sm,
        num_warps=launch["num_warps"],
        shared_bytes=compiled.metadata.shared,
        registers=registers,
        stack_bytes=stack,
        triton_version=triton.__version__,
        tensor_columns=int(getattr(compiled.metadata, "tmem_size", None) or 0),
    )


def runs_on(case: Case, sm: int) -> bool:
    """Whether a kernel's instructions exist there."""
    return sm == HOPPER if isinstance(case, GluonCase) else True


def _ffn(case: FfnCase, sm: int) -> tuple[Any, dict[str, Any], dict[str, int]]:
    from flashsvd.kernels.ffn.launch import ffn_constants
    from flashsvd.kernels.ffn.triton_kernel import ffn_kernel

    tiles = ffn_tiles(
        case.rows,
        case.width,
        case.rank_in,
        case.rank_out,
        case.dtype,
        rank_up=case.rank_up,
        out_width=case.out_width,
        shared_limit_bytes=shared_limit_bytes(sm),
        multiprocessors=case.multiprocessors,
    )
    sizes = (case.width, case.rank_in, case.rank_up, case.rank_out, case.out_width)
    constants = ffn_constants(
        case.activation,
        case.dtype,
        sizes,
        (case.biased,) * 3,
        tuple(_ffn_strides(case).values()),
        tiles,
        nvidia=True,
    )
    return ffn_kernel, constants, {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}


def _ffn_strides(case: FfnCase) -> dict[str, int]:
    """Row strides of contiguous inputs, in the order of the launch; what a case has not is another's."""
    return {
        "p_stride": case.rank_in,
        "u1_stride": case.rank_in,
        "up_p_stride": case.rank_up or case.rank_in,
        "up_u_stride": case.rank_up or case.rank_in,
        "v2_stride": case.width,
        "u2_stride": case.rank_out if case.out_width else case.width,
        "out_stride": case.out_width or case.rank_out,
    }


def _argument_type(name: str, dtype: torch.dtype) -> str:
    if name.endswith("_table"):
        return "*i32"
    if name == "key_mask":
        return "*u8"
    if name == "scale_log2":
        return "fp32"
    if "stride" in name or name in (
        "seq",
        "keys",
        "heads",
        "window",
        "rows",
        "width",
        "rank_in",
        "rank_up",
        "rank_out",
        "out_width",
        "blocks",
        "at",
        "rank",
        "head",
    ):
        return "i32"
    return "*" + _TYPE_NAMES[dtype]


def _aligned_numbers(case: Case) -> frozenset[str]:
    """Sizes and strides that a launch of this case would find divisible by 16, as Triton itself checks."""
    if isinstance(case, RebuildCase | AttentionCase):
        return case.aligned_numbers
    if not isinstance(case, FfnCase):
        # Their own business: constants say what divides the strides, or the case makes its source itself.
        return frozenset()
    numbers = {"rows": case.rows, "width": case.width, "rank_in": case.rank_in, "rank_up": case.rank_up}
    numbers |= {"rank_out": case.rank_out, "out_width": case.out_width} | _ffn_strides(case)
    return frozenset(name for name, number in numbers.items() if number % 16 == 0)


def _registers_and_stack(cubin: bytes) -> tuple[int | None, int | None]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return None, None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        dump = subprocess.run(
            [str(tool), "--dump-resource-usage", str(path)], capture_output=True, text=True, check=False
        ).stdout
    registers, stack = re.search(r"REG:(\d+)", dump), re.search(r"STACK:(\d+)", dump)
    return (int(registers[1]) if registers else None, int(stack[1]) if stack else None)


def compile_all(sms: tuple[int, ...]) -> Iterator[Resources]:
    """Every default case for every compute capability, one at a time as it is done."""
    for case in default_cases():
        for sm in filter(functools.partial(runs_on, case), sms):
            yield compile_case(case, sm)


def main(arguments: list[str] | None = None) -> int:
    """`python -m flashsvd.kernels.resources --sm 80 --sm 90 [--json]`."""
    parser = argparse.ArgumentParser(prog="python -m flashsvd.kernels.resources", description=main.__doc__)
    parser.add_argument("--sm", type=int, action="append", help="compute capability, 80 for 8.0; repeatable")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        rows = [dataclasses.asdict(row) for row in compile_all(tuple(options.sm or (80, 90)))]
    if options.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print("  ".join(f"{name}={value}" for name, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
