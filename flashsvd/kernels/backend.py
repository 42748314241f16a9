"""Which implementation of an op runs: Triton on the GPU, plain torch anywhere, the interpreter in tests."""

from __future__ import annotations

import contextlib
import functools
import os
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch

from flashsvd.errors import DeviceError, InputError

Backend = Literal["naive", "torch", "triton", "interpret"]
BACKENDS: tuple[Backend, ...] = ("naive", "torch", "triton", "interpret")


def choose(device: torch.device) -> Literal["triton", "torch"]:
    """The backend an op takes when none is named: "triton" on CUDA where Triton is installed, else
    "torch"."""
    return "triton" if device.type == "cuda" and find_spec("triton") is not None else "torch"


def resolve(backend: str | None, device: torch.device) -> Backend:
    """The backend to run for tensors on `device`, or an error that says what is missing.

    None takes `choose(device)`. Raises InputError for an unknown name, or for "interpret" in a process that
    was not started with TRITON_INTERPRET=1, and DeviceError for "triton" where it cannot run.
    """
    if backend is None:
        return choose(device)
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)} or None, got {backend!r}")
    if backend == "triton":
        if device.type != "cuda":
            raise DeviceError(
                f"backend 'triton' needs tensors on a CUDA device, got {device}; use 'torch', or "
                "'interpret' to run the Triton source on a CPU"
            )
        if find_spec("triton") is None:
            raise DeviceError("backend 'triton' needs the triton package; install it or use backend 'torch'")
        if interpreting():
            raise InputError(
                "TRITON_INTERPRET=1 is set, so nothing compiles; unset it or use backend 'interpret'"
            )
    if backend == "interpret" and not interpreting():
        raise InputError(
            "backend 'interpret' needs TRITON_INTERPRET=1 set before the process imports triton; set it in "
            "the environment and start again, or use backend 'torch'"
        )
    return backend


def on_device(tensor: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Where a kernel for this tensor is started: Triton takes the current device, not the arguments'.

    Nothing where that is the tensor's already, as entering costs a few microseconds of every launch.
    """
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


class Gpu(NamedTuple):
    """What tiles and plans ask of a CUDA device: compute capability and multiprocessors."""

    major: int
    minor: int
    multiprocessors: int


@functools.cache
def gpu_of(device: torch.device) -> Gpu:
    """The GPU behind a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    return Gpu(properties.major, properties.minor, properties.multi_processor_count)


def interpreting() -> bool:
    """Whether Triton in this process runs kernels in its interpreter.

    The environment alone does not tell: `@triton.jit` reads it when it decorates, so Triton's own library is
    compiled for good once imported without it.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or find_spec("triton") is None:
        return False
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(tl.cdiv, InterpretedFunction)
