"""A product with a weight and a bias: a kernel of its own on a Hopper GPU where that saves time, else torch's."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import check_activation, check_tensor
from flashsvd.kernels.backend import resolve
from flashsvd.kernels.linear.hopper import linear_takes, prepare_linear
from flashsvd.kernels.linear.naive import naive_linear
from flashsvd.kernels.starter import Kept, looks

__all__ = ["linear"]

Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Multiplies x by weight and adds bias."""

_starts: Kept[Start] = Kept()


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, backend: str | None = None
) -> torch.Tensor:
    """x @ weightᵀ + bias over the last dimension, sums in fp32 (fp64 for fp64); inference only, no gradients.

    x: [..., K]; weight: [N, K]; bias: [N] or None; last strides 1. backend: see `flashsvd.kernels.backend.resolve`;
    "triton" is the Hopper kernel where `flashsvd.kernels.linear.hopper.linear_takes` the call, and every other way but
    "naive" torch's own product.

    Returns a new contiguous tensor [..., N]. Raises InputError when shapes, dtypes or devices do not fit, DeviceError
    when the backend cannot run on the tensors' device.

    Source: `torch.nn.functional.linear`.

    >>> from flashsvd.kernels.linear import linear
    >>> x, weight, bias = torch.randn(2, 5, 16), torch.randn(24, 16), torch.randn(24)
    >>> y = linear(x, weight, bias)
    >>> y.shape, bool((y - (x @ weight.T + bias)).abs().max() < 1e-4)
    (torch.Size([2, 5, 24]), True)
    """
    key = looks((x, weight, bias), backend)
    start = _starts.find(key)
    if start is None:
        start = _starts.keep(key, _prepared(x, weight, bias, backend))
    return start(x, weight, bias)


def _prepared(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, backend: str | None) -> Start:
    """What multiplies tensors that look like these, which are checked; it keeps none of them."""
    check_activation("x", x)
    check_activation("weight", weight)
    if x.dim() < 1 or weight.dim() != 2:
        raise InputError(
            f"x must be [..., K] and weight [N, K], got {list(x.shape)} and {list(weight.shape)}"
        )
    check_tensor("weight", weight, (weight.shape[0], x.shape[-1]), x, like_name="x")
    if bias is not None:
        check_tensor("bias", bias, (weight.shape[0],), x, like_name="x")
        check_activation("bias", bias)
    chosen = resolve(backend, x.device)
    if chosen == "naive":
        return _naive
    if chosen != "triton" or not linear_takes(x, weight):
        return _in_torch
    return _by_kernel(x, weight, bias)


def _by_kernel(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Start:
    shape, dtype, device = (*x.shape[:-1], weight.shape[0]), x.dtype, x.device
    multiply = prepare_linear(x, weight, bias, torch.empty(shape, dtype=dtype, device=device))

    def start(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out = torch.empty(shape, dtype=dtype, device=device)
        multiply(x, weight, bias, out)
        return out

    return start


@torch.no_grad()
def _naive(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return naive_linear(x, weight, bias)


def _in_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # Not as a decorator: where gradients are off, as in an engine, turning them off again costs 2 us a call.
    if not torch.is_grad_enabled():
        return torch.nn.functional.linear(x, weight, bias)
    with torch.no_grad():
        return torch.nn.functional.linear(x, weight, bias)
