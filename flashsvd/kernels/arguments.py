"""Checks of what callers pass to the ops, so that a mistake is one line and never a wrong number."""

from __future__ import annotations

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.layout import Projection

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensor(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], like: torch.Tensor, *, like_name: str
) -> None:
    """Raise InputError unless `tensor` has `shape` and the dtype and device of `like`."""
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tuple(tensor.shape) != shape:
        raise InputError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.dtype != like.dtype:
        raise InputError(f"{name} is {tensor.dtype} but {like_name} is {like.dtype}; cast one of them")
    if tensor.device != like.device:
        raise InputError(f"{name} is on {tensor.device} but {like_name} on {like.device}; move one of them")


def check_activation(name: str, tensor: torch.Tensor) -> None:
    """Raise InputError unless `tensor` is a floating-point tensor whose last stride is 1."""
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise InputError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}; cast it")
    if tensor.dim() > 0 and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise InputError(
            f"{name} must have last stride 1, got strides {list(tensor.stride())}; call .contiguous() on it"
        )


def check_projection(name: str, proj: Projection, heads: int, head_dim: int, like: torch.Tensor) -> None:
    """Raise InputError unless every part of `proj` fits `heads` heads of `head_dim` and matches `like`, which
    is q.p."""
    p, u, bias, layout, table = proj
    check_activation(f"{name}.p", p)
    if (u is None) != (layout is None):
        raise InputError(
            f"{name}.u and {name}.layout go together, got only one of them; pass both, or neither if dense"
        )
    if layout is not None and layout.heads != heads:
        raise InputError(f"{name}.layout must have {heads} heads, got {layout.heads}")
    width = heads * head_dim if layout is None else layout.p_width
    check_tensor(f"{name}.p", p, (*like.shape[:2], width), like, like_name="q.p")
    if u is not None and layout is not None:
        check_tensor(f"{name}.u", u, (layout.u_rows, head_dim), like, like_name="q.p")
    if bias is not None:
        check_tensor(f"{name}.bias", bias, (heads * head_dim,), like, like_name="q.p")
    if table is not None:
        if tuple(table.shape) != (heads, 3) or table.dtype != torch.int32:
            raise InputError(
                f"{name}.table must be int32 [{heads}, 3], got {table.dtype} {list(table.shape)}; "
                "use layout.table()"
            )
        if table.device != like.device:
            raise InputError(f"{name}.table is on {table.device} but q.p on {like.device}; move it")
