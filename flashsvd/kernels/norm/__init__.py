"""LayerNorm and RMSNorm of a hidden state, with a bias added first, in the place of what they read."""

from __future__ import annotations

from typing import Literal

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import check_activation, check_tensor
from flashsvd.kernels.backend import resolve
from flashsvd.kernels.norm.naive import naive_norm
from flashsvd.kernels.norm.stream import stream_norm

__all__ = ["KINDS", "fused_norm"]

Kind = Literal["layer", "rms"]
KINDS: tuple[Kind, ...] = ("layer", "rms")


@torch.no_grad()
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
    check_activation("x", x)
    if x.dim() < 1 or kind not in KINDS:
        raise InputError(
            f"x must be [..., N] and kind one of {', '.join(KINDS)}, got {list(x.shape)} and {kind!r}"
        )
    for name, vector in (("weight", weight), ("shift", shift), ("bias", bias)):
        if vector is not None:
            check_tensor(name, vector, (x.shape[-1],), x, like_name="x")
            check_activation(name, vector)
    out = torch.empty_like(x) if out is None else out
    check_activation("out", out)
    check_tensor("out", out, tuple(x.shape), x, like_name="x")
    chosen = resolve(backend, x.device)
    rows, target = _rows("x", x), _rows("out", out)
    if rows.numel() == 0:
        return out
    if chosen == "naive":
        target.copy_(naive_norm(rows, weight, shift, eps, bias, kind))
    elif chosen == "torch":
        stream_norm(rows, weight, shift, eps, bias, kind, target)
    else:
        from flashsvd.kernels.norm.launch import launch_norm

        launch_norm(rows, weight, shift, eps, bias, kind, target)
    return out


def _rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """[..., N] as [M, N] without a copy."""
    try:
        return tensor.view(-1, tensor.shape[-1])
    except RuntimeError:
        raise InputError(
            f"the rows of {name} must be at equal distance, got strides {list(tensor.stride())}; "
            "call .contiguous() on it"
        ) from None
