"""LayerNorm and RMSNorm of a hidden state, with a bias added first, in the place of what they read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import check_activation, check_tensor
from flashsvd.kernels.backend import resolve
from flashsvd.kernels.norm.naive import naive_norm
from flashsvd.kernels.norm.stream import stream_norm
from flashsvd.kernels.starter import Kept, looks

__all__ = ["KINDS", "fused_norm"]

Kind = Literal["layer", "rms"]
KINDS: tuple[Kind, ...] = ("layer", "rms")

Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor], object]
"""Norms x with weight, shift and bias into out."""

_starts: Kept[Start] = Kept()


def fused_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    *,
    bias: torch.Tensor | None = None,
    kind: Kind = "layer",
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """norm(x + bias)·weight + shift over the last dimension; statistics in fp32 (fp64 for fp64), no gradients.

    x: [..., N], last stride 1, rows at equal distance. weight [N]; shift, bias: [N] or None. kind: "layer" subtracts
    the mean, "rms" does not. out: where to write, [..., N] like x; it may be x itself, and is then all the memory that
    a sublayer's bias, residual and norm take. backend: see `flashsvd.kernels.backend.resolve`.

    Returns out, or a new tensor. Raises InputError when shapes, dtypes or devices do not fit.

    Source: Ba, Kiros, Hinton 2016, arXiv 1607.06450; RMSNorm: Zhang, Sennrich 2019, arXiv 1910.07467.

    >>> x = torch.randn(2, 3, 8)
    >>> fused_norm(x, torch.ones(8), None, 1e-6, out=x) is x
    True
    """
    eps = float(eps)
    if out is None and isinstance(x, torch.Tensor):
        out = torch.empty_like(x)
    key = looks((x, weight, shift, bias, out), eps, kind, backend)
    start = _starts.find(key)
    if start is None:
        start = _starts.keep(key, _prepared(x, weight, shift, eps, bias, kind, out, backend))
    assert out is not None
    start(x, weight, shift, bias, out)
    return out


def _prepared(
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    bias: torch.Tensor | None,
    kind: Kind,
    out: torch.Tensor | None,
    backend: str | None,
) -> Start:
    """What norms tensors that look like these, which are checked; it keeps none of them."""
    check_activation("x", x)
    if x.dim() < 1 or kind not in KINDS:
        raise InputError(
            f"x must be [..., N] and kind one of {', '.join(KINDS)}, got {list(x.shape)} and {kind!r}"
        )
    for name, vector in (("weight", weight), ("shift", shift), ("bias", bias)):
        if vector is not None:
            check_tensor(name, vector, (x.shape[-1],), x, like_name="x")
            check_activation(name, vector)
    assert out is not None
    check_activation("out", out)
    check_tensor("out", out, tuple(x.shape), x, like_name="x")
    chosen = resolve(backend, x.device)
    rows, target = _rows("x", x), _rows("out", out)
    if rows.numel() == 0:
        return _nothing
    if chosen in ("naive", "torch"):
        return functools.partial(_in_torch, chosen == "naive", eps, kind)
    from flashsvd.kernels.norm.launch import prepare_norm

    return prepare_norm(rows, weight, shift, eps, bias, kind, target)


def _nothing(*_: object) -> None:
    """The norm of no rows."""


@torch.no_grad()
def _in_torch(
    naive: bool,
    eps: float,
    kind: Kind,
    x: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    rows, target = _rows("x", x), _rows("out", out)
    if naive:
        target.copy_(naive_norm(rows, weight, shift, eps, bias, kind))
    else:
        stream_norm(rows, weight, shift, eps, bias, kind, target)


def _rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """[..., N] as [M, N] without a copy."""
    try:
        return tensor.view(-1, tensor.shape[-1])
    except RuntimeError:
        raise InputError(
            f"the rows of {name} must be at equal distance, got strides {list(tensor.stride())}; "
            "call .contiguous() on it"
        ) from None
