"""What kernels in Gluon need on the host: whether this Triton has it, layouts of tiles, TMA descriptors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch


@functools.cache
def has_gluon() -> bool:
    """Whether the installed Triton can compile kernels in Gluon for Hopper."""
    try:
        return find_spec("triton.experimental.gluon.language.nvidia.hopper") is not None
    except ModuleNotFoundError:
        return False


def describable(tensor: torch.Tensor) -> bool:
    """Whether TMA can read it: last stride 1, the others whole multiples of 16 bytes above 0, a start on 16 bytes."""
    steps = [
        stride * tensor.element_size()
        for stride, size in zip(tensor.stride()[:-1], tensor.shape[:-1], strict=True)
        if size > 1
    ]
    return (
        tensor.stride(-1) == 1
        and all(step > 0 and step % 16 == 0 for step in steps)
        and tensor.data_ptr() % 16 == 0
    )


def descriptors(tensor: torch.Tensor, tile: tuple[int, ...]) -> Callable[[torch.Tensor], Any]:
    """What makes descriptors of tensors that look like `tensor` or lie in memory like it, by tiles of that size.

    They differ in the tensor alone, so the first one's checks (2.5 us on the H200's host) serve all. What is outside
    a tensor reads as zeros.
    """
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    # A stride of a dimension of size 1 is anything, and TMA wants multiples of 16 bytes.
    strides = list(tensor.stride())
    for axis in range(tensor.dim() - 2, -1, -1):
        if tensor.shape[axis] == 1:
            strides[axis] = max(tensor.shape[axis + 1] * strides[axis + 1], 16)
            strides[axis] += -strides[axis] % 16
    layout = layout_of(tile, tensor.dtype)
    first = TensorDescriptor(tensor, list(tensor.shape), strides, list(tile), layout)
    fields = {**vars(first), "base": None}

    def make(base: torch.Tensor) -> Any:
        made = object.__new__(TensorDescriptor)
        vars(made).update(fields)
        made.base = base
        return made

    return make


@functools.cache
def layout_of(tile: tuple[int, ...], dtype: torch.dtype) -> Any:
    """How a tile of a half type lies in shared memory."""
    from triton.experimental.gluon import language as gl

    kind = gl.bfloat16 if dtype == torch.bfloat16 else gl.float16
    return gl.NVMMASharedLayout.get_default_for(list(tile), kind)


def described(tile: tuple[int, ...], dtype: torch.dtype) -> str:
    """Triton's name for the type of such a descriptor."""
    name = {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    return f"tensordesc<{name}{list(tile)},{layout_of(tile, dtype)!r}>"
