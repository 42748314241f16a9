"""Ways to compile the step's kernels for a GPU that need not be there; see `flashsvd.kernels.resources`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.kernels.backend import Gpu
from flashsvd.kernels.step.instructions import (
    Attend,
    Embed,
    HeadFactor,
    Heads,
    Instruction,
    Product,
    Program,
    Rows,
    Scaled,
    Squares,
)

_MULTIPROCESSORS = {80: 108, 90: 132}
"""Of an A100 and an H200, on which tiles depend."""
_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class StepKernelCase:
    """One instruction of a decoder's layer, as a chain of kernels would start it.

    `instruction`: "p" (the packed first factors of q, k and v), "heads", "attend", "wide" (activation of the gate times
    up), "down" (its first factor) or "residual" (the second, added, for a norm). All ranks but those of the heads are
    `rank`.
    """

    name: str
    instruction: str
    dtype: torch.dtype = torch.bfloat16
    batch: int = 1
    hidden: int = 4096
    width: int = 11008
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    rank: int = 1024
    context: int = 4096
    biased: bool = False
    rotary: bool = True
    head_norms: bool = False
    window: int | None = None
    multiprocessors: int = 0
    """0: as many as the GPU of that compute capability in the table above has."""

    def source(self, sm: int) -> tuple[Any, dict[str, int]]:
        """What Triton compiles, and launch options: as for a GPU of compute capability `sm`."""
        from triton.compiler import ASTSource
        from triton.experimental.gluon._runtime import GluonASTSource

        from flashsvd.kernels.step.launch import Chain

        count = self.multiprocessors or _MULTIPROCESSORS.get(sm, 132)
        chain = Chain(self._program(), Gpu(sm // 10, sm % 10, count))
        kernel, arguments, options = chain.given()[-1]
        constant = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
        signature, constants, aligned = {}, {}, {}
        for place, (name, value) in enumerate(arguments.items()):
            if name in constant or (isinstance(value, int) and value == 1):
                signature[name], constants[name] = "constexpr", value
                continue
            signature[name] = _type_of(value)
            if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                aligned[(place,)] = [["tt.divisibility", 16]]
        source = GluonASTSource if kernel.is_gluon() else ASTSource
        return source(kernel, signature, constants, aligned), options

    def _program(self) -> Program:
        """The instruction and what it reads, without memory."""
        batch, hidden = self.batch, self.hidden
        x, scaled = self._empty(batch, hidden), self._empty(batch, hidden)
        squares = Squares(self._empty(batch, hidden, dtype=torch.float32), hidden)
        scale = Scaled(self._empty(hidden), scaled, squares)
        embed = Embed(self._empty(32, hidden), None, 0, x, scale)
        tables = self._empty(self.context, self.head_dim, dtype=torch.float32)
        return Program(
            (embed, *self._instructions(x, scale)),
            self._empty(batch, dtype=torch.int64),
            self._empty(dtype=torch.int32),
            self._empty(batch, dtype=torch.int32),
            (tables, tables) if self.rotary else None,
            self.heads,
            1e-5,
            "silu",
        )

    def _instructions(self, x: torch.Tensor, scale: Scaled) -> tuple[Instruction, ...]:
        batch, hidden, width, rank, h = self.batch, self.hidden, self.width, self.rank, self.head_dim
        columns = (self.heads + 2 * self.kv_heads) * h
        out = self._empty(4, batch, columns, dtype=torch.float32)
        p, wide, low = self._empty(batch, 3 * rank), self._empty(batch, width), self._empty(batch, rank)
        caches = [self._empty(batch, self.kv_heads, self.context, h) for _ in "kv"]
        norm = self._empty(h) if self.head_norms else None
        attend = Attend(
            out,
            self._empty(columns) if self.biased else None,
            norm,
            norm,
            caches[0],
            caches[1],
            self.heads * h,
            (self.heads + self.kv_heads) * h,
            self.window,
            h**-0.5,
            self._empty(batch, self.heads * h),
        )
        if self.instruction == "attend":
            return (attend,)
        if self.instruction == "heads":
            # Attention says in how many shares the heads are.
            factor = HeadFactor(0, self._empty(rank, h), 0)
            return attend, Heads(p, (factor,), out)
        if self.instruction == "p":
            return (Rows(Product(scale.scaled, self._empty(3 * rank, hidden), None, scale.squares), p),)
        bias = self._empty(width) if self.biased else None
        if self.instruction == "wide":
            gate, up = (Product(p[:, at : at + rank], self._empty(width, rank), bias) for at in (0, rank))
            return (Rows(gate, wide, activated=True, up=up),)
        if self.instruction == "down":
            return (Rows(Product(wide, self._empty(rank, width), None), low),)
        assert self.instruction == "residual"
        return (Rows(Product(low, self._empty(hidden, rank), None), x, added=x, next=scale),)

    def _empty(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device="meta")


def _type_of(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def step_cases() -> tuple[StepKernelCase, ...]:
    """All that a step of Llama-2-7B is made of, much of it for 16 sequences, and other models' attention."""
    fp16, fp32 = torch.float16, torch.float32
    every = ("p", "heads", "attend", "wide", "down", "residual")
    return (
        *(StepKernelCase(f"bf16 step 7b {name}", name) for name in every),
        *(StepKernelCase(f"bf16 step 7b B16 {name}", name, batch=16) for name in every),
        StepKernelCase("fp16 step 0.5b B2 wide", "wide", fp16, 2, 896, 4864, rank=320, biased=True),
        StepKernelCase("bf16 step 7b attend few", "attend", context=544),
        StepKernelCase("fp16 step 7b B64 wide", "wide", fp16, batch=64, biased=True),
        StepKernelCase("fp32 step 7b B3 wide", "wide", fp32, batch=3),
        StepKernelCase("bf16 step groups B4 attend", "attend", batch=4, kv_heads=8, window=4095),
        StepKernelCase("bf16 step norms of heads attend", "attend", heads=16, kv_heads=8, head_norms=True),
        StepKernelCase(
            "fp32 step learned positions attend", "attend", fp32, head_dim=64, biased=True, rotary=False
        ),
    )
