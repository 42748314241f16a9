"""Rotary positions: the heads of q and k turned by the place of their token, where they are."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import check_activation, check_tensor, may_overlap
from flashsvd.kernels.backend import resolve
from flashsvd.kernels.rotary.naive import naive_rotary
from flashsvd.kernels.rotary.stream import stream_rotary
from flashsvd.kernels.starter import Kept, looks

__all__ = ["MAX_HEAD_DIM", "rotate_heads"]

MAX_HEAD_DIM = 256

Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], object]
"""Turns q and k by cos and sin."""

_starts: Kept[Start] = Kept()


def rotate_heads(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns every pair (i, i + h/2) of every head of q and k by its token's angle, in fp32 (fp64 for fp64); they are
    written over and returned. No gradients.

    q [B, S, H·h] and k [B, S, Hk·h] have last stride 1 and are else free, as for column slices of one packed product.
    cos, sin: [B or 1, S, h] of any floating dtype, both halves alike, as transformers makes them; the head dim h is
    theirs, and only their first half is read. backend: see `flashsvd.kernels.backend.resolve`.

    Raises InputError when shapes, dtypes, devices or memory do not fit.

    Source: RoFormer, Su et al. 2021, arXiv 2104.09864, in the half-split form of GPT-NeoX.

    >>> q, k = torch.ones(1, 1, 4), torch.ones(1, 1, 4)
    >>> quarter = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    >>> rotate_heads(q, k, *quarter)[0].tolist()
    [[[-1.0, -1.0, 1.0, 1.0]]]
    """
    key = looks((q, k, cos, sin), backend)
    if key is not None:
        # Whether they share memory is a matter of how far they are from one another.
        key = (key, q.data_ptr() - k.data_ptr())
    start = _starts.find(key)
    if start is None:
        start = _starts.keep(key, _prepared(q, k, cos, sin, backend))
    start(q, k, cos, sin)
    return q, k


def _prepared(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, backend: str | None
) -> Start:
    """What turns tensors that look like these, which are checked; it keeps none of them."""
    for name, tensor in (("q", q), ("k", k), ("cos", cos), ("sin", sin)):
        check_activation(name, tensor)
        if tensor.dim() != 3:
            raise InputError(f"{name} must have 3 dimensions, [B, S, width], got shape {list(tensor.shape)}")
    head_dim = cos.shape[-1]
    if head_dim % 2 or not 2 <= head_dim <= MAX_HEAD_DIM:
        raise InputError(
            f"cos must be [B or 1, S, h] of an even head dim h from 2 to {MAX_HEAD_DIM}, got {list(cos.shape)}"
        )
    batch, seq, _ = q.shape
    for name, tensor in (("q", q), ("k", k)):
        width = tensor.shape[-1]
        if width % head_dim or not width:
            raise InputError(
                f"{name} must have whole heads of {head_dim} columns, cos's last dimension, got {width} columns"
            )
        _check_apart(name, tensor)
    check_tensor("k", k, (batch, seq, k.shape[-1]), q, like_name="q")
    if cos.shape[:2] not in ((batch, seq), (1, seq)):
        raise InputError(
            f"cos must be [{batch} or 1, {seq}, {head_dim}], a row per token of q, got {list(cos.shape)}"
        )
    check_tensor("sin", sin, tuple(cos.shape), cos, like_name="cos")
    if cos.device != q.device:
        raise InputError(f"cos is on {cos.device} but q on {q.device}; move one of them")
    if may_overlap(q, k):
        raise InputError("q and k must not share memory, as both are written over; clone one of them")
    chosen = resolve(backend, q.device)
    if q.numel() == 0:
        return _nothing
    if chosen in ("naive", "torch"):
        return _naive if chosen == "naive" else _stream
    from flashsvd.kernels.rotary.launch import prepare_rotary

    return prepare_rotary(q, k, cos, sin)


def _check_apart(name: str, tensor: torch.Tensor) -> None:
    """Raise InputError where an element of a [B, S, width] tensor has two places, as after expand()."""
    reach = tensor.shape[-1]
    for stride, size in sorted(zip(tensor.stride()[:2], tensor.shape[:2], strict=True)):
        if size > 1 and stride < reach:
            raise InputError(
                f"rows of {name} must not share memory, as they are written over, got shape {list(tensor.shape)} and "
                f"strides {list(tensor.stride())}; call .contiguous() on it"
            )
        reach += (size - 1) * stride


def _nothing(*_: object) -> None:
    """The turn of no tokens."""


@torch.no_grad()
def _naive(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    for heads in (q, k):
        heads.copy_(naive_rotary(heads, cos, sin))


@torch.no_grad()
def _stream(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    for heads in (q, k):
        stream_rotary(heads, cos, sin)
