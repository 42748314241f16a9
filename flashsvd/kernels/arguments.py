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


def check_compiled(tensor: torch.Tensor) -> None:
    """Raise InputError unless the Triton kernels are made for this dtype."""
    if tensor.dtype == torch.float64:
        raise InputError(
            "the Triton kernel takes float16, bfloat16 or float32, got torch.float64; use backend 'torch'"
        )


def check_projection(
    name: str, proj: Projection, heads: int, head_dim: int, like: torch.Tensor, seq: int
) -> None:
    """Raise InputError unless every part of `proj` fits `seq` tokens of `heads` heads of `head_dim` and matches
    `like`, which is q.p."""
    p, u, bias, layout, table = proj
    check_activation(f"{name}.p", p)
    if (u is None) != (layout is None):
        raise InputError(
            f"{name}.u and {name}.layout go together, got only one of them; pass both, or neither if dense"
        )
    if layout is not None and layout.heads != heads:
        raise InputError(f"{name}.layout must have {heads} heads, got {layout.heads}")
    width = heads * head_dim if layout is None else layout.p_width
    check_tensor(f"{name}.p", p, (like.shape[0], seq, width), like, like_name="q.p")
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


def check_key_mask(key_mask: torch.Tensor, like: torch.Tensor, *, like_name: str) -> None:
    """Raise InputError unless `key_mask` is bool [B, S] on the device of `like` [B, S, width]."""
    if not isinstance(key_mask, torch.Tensor):
        raise InputError(f"key_mask must be a tensor or None, got {type(key_mask).__name__}")
    if key_mask.dtype != torch.bool or key_mask.shape != like.shape[:2]:
        raise InputError(
            f"key_mask must be bool {list(like.shape[:2])}, True = attend, got {key_mask.dtype} "
            f"{list(key_mask.shape)}; for a 0/1 attention_mask pass attention_mask.bool()"
        )
    if key_mask.device != like.device:
        raise InputError(f"key_mask is on {key_mask.device} but {like_name} on {like.device}; move it")


def check_window(window: object) -> None:
    """Raise InputError unless `window` is a whole number of at least 0, or None."""
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 0):
        raise InputError(f"window must be a whole number of at least 0, or None, got {window!r}")


def count_keys(k: torch.Tensor, q: torch.Tensor, causal: object, *, name: str, like_name: str) -> int:
    """How many keys k [B, T, width] has to have, or may have, for q [B, S, width]: S, and with `causal` T from S up.

    Raises InputError for a `causal` that is no truth value and for fewer keys than queries.
    """
    if not isinstance(causal, bool):
        raise InputError(f"causal must be True or False, got {causal!r}")
    if not causal or k.dim() != 3:
        return q.shape[1]
    if k.shape[1] < q.shape[1]:
        raise InputError(
            f"{name} must have at least the {q.shape[1]} tokens of {like_name}, which are its last ones, got "
            f"{k.shape[1]}"
        )
    return k.shape[1]


def may_overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two [B, S, W] tensors of one dtype may share memory, each with last stride 1.

    Exact for slices of one packed tensor, over columns or sequences; with different strides, memory that
    interleaves counts as shared.

    >>> packed = torch.zeros(2, 3, 10)
    >>> may_overlap(packed[..., :4], packed[..., 4:]), may_overlap(packed[..., :5], packed[..., 4:])
    (False, True)
    """
    size = a.element_size()
    ends = [
        t.data_ptr() + size * (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)))
        for t in (a, b)
    ]
    if a.numel() == 0 or b.numel() == 0 or ends[0] <= b.data_ptr() or ends[1] <= a.data_ptr():
        return False
    step = a.stride(1)
    if a.stride() != b.stride() or step == 0 or a.stride(0) % step:
        return True
    # Rows of both start at whole steps from their first, so one row of each tells for all.
    apart = (b.data_ptr() - a.data_ptr()) // size % step
    return apart < a.shape[2] or step - apart < b.shape[2]
