"""A whole decode step as one op: a program of instructions over tensors, run for one new token per sequence.

In plain torch every instruction is an op or two; on a GPU one Triton or Gluon kernel, which begins while the one before
it ends. A step allocates nothing, so that it can be captured as one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.backend import resolve
from flashsvd.kernels.step.instructions import (
    Attend,
    Embed,
    HeadFactor,
    Heads,
    Instruction,
    Norm,
    Product,
    Program,
    Rows,
    Scaled,
    Squares,
)
from flashsvd.kernels.step.naive import run_naive
from flashsvd.kernels.step.tiles import MOST_ROWS

__all__ = [
    "MOST_ROWS",
    "Attend",
    "Embed",
    "HeadFactor",
    "Heads",
    "Instruction",
    "Norm",
    "Product",
    "Program",
    "Rows",
    "Scaled",
    "Squares",
    "prepare_step",
]


def prepare_step(program: Program, backend: str | None = None) -> Callable[[], None]:
    """What runs one step of a program on the tensors that it names, each time it is called.

    backend: see `flashsvd.kernels.backend.resolve`; "torch" and "naive" are the definition, instruction by
    instruction. The Triton kernel takes up to MOST_ROWS sequences and allocates nothing after this.

    Raises InputError for more sequences than that, for a width or stride that is no multiple of 8, and for rows that do
    not lie as the kernels take them.
    """
    chosen = resolve(backend, program.tokens.device)
    if chosen in ("naive", "torch"):
        return lambda: run_naive(program)
    _check(program)
    from flashsvd.kernels.step.launch import Chain

    return Chain(program)


def _check(program: Program) -> None:
    if program.batch > MOST_ROWS:
        raise InputError(
            f"the step kernel takes up to {MOST_ROWS} sequences, got {program.batch}; use backend 'torch'"
        )
    for step in program.instructions:
        if isinstance(step, Rows):
            for product in (step.product, step.up):
                if product is not None:
                    _check_eights(product.x, product.weight)
            _check_rows(step.out, step.added, None if step.next is None else step.next.scaled)
        elif isinstance(step, Heads):
            _check_eights(step.p)
            _check_factors([head.u for head in step.factors])
        elif isinstance(step, Attend) and (step.k_cache.shape[-1] % 8 or step.v_cache.shape[-1] % 8):
            raise InputError(
                f"widths of the caches must be multiples of 8, got {step.k_cache.shape[-1]}, {step.v_cache.shape[-1]}"
            )


def _check_rows(out: torch.Tensor, *others: torch.Tensor | None) -> None:
    for other in others:
        if other is not None and other.stride() != out.stride():
            raise InputError(
                "what is added, and what is left for a norm, must lie as out does, strides "
                f"{list(out.stride())}, got {list(other.stride())}"
            )


def _check_factors(factors: Sequence[torch.Tensor]) -> None:
    for u in factors:
        if u.shape[1] != factors[0].shape[1] or not u.is_contiguous() or u.data_ptr() % 16:
            raise InputError(
                f"factors of heads must be contiguous [rank, {factors[0].shape[1]}] and start on 16 bytes, got shape "
                f"{list(u.shape)} and strides {list(u.stride())}"
            )


def _check_eights(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        if tensor.shape[-1] % 8 or tensor.stride(0) % 8 or tensor.data_ptr() % 16 or tensor.stride(-1) != 1:
            raise InputError(
                "x and weights need widths and strides in multiples of 8 and rows that start on 16 bytes, got shape "
                f"{list(tensor.shape)} and strides {list(tensor.stride())}; pad them with zeros"
            )
