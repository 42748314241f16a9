"""The heads of q and k rebuilt from rank-space activations and turned by the place of their token, in one pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import check_activation, check_tensor
from flashsvd.kernels.backend import Backend, resolve
from flashsvd.kernels.rebuild.naive import naive_rebuild
from flashsvd.kernels.rebuild.runs import Run, check_runs
from flashsvd.kernels.rebuild.stream import stream_rebuild
from flashsvd.kernels.rebuild.tiles import rebuild_takes
from flashsvd.kernels.rotary import MAX_HEAD_DIM
from flashsvd.kernels.starter import Kept, looks

__all__ = ["Run", "rebuild_rotated"]

Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor], torch.Tensor]
"""Makes heads of p, second, bias, cos and sin."""

_starts: Kept[Start] = Kept()


def rebuild_rotated(
    p: torch.Tensor,
    second: torch.Tensor,
    bias: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    runs: Sequence[Run],
    backend: str | None = None,
) -> torch.Tensor:
    """Heads P_i·U_i + b_i with every pair of columns (j, j + h/2) turned by its token's angle; sums and turns are in
    fp32 (fp64 for fp64) and rounded once by the kernel, after every step by plain torch. No gradients.

    p [B, S, R]: rank-space activations, head after head, with last stride 1 and rows at equal distance; columns behind
    those that the runs name are not read. second [Rqk, h]: the heads' second factors, one under the other, contiguous.
    bias [heads·h] or None. cos, sin: [B or 1, S, h] of any floating dtype, both halves alike, as transformers makes
    them; only their first half is read. runs: the heads that share a rank, q's before k's, two heads at least.
    backend: see `flashsvd.kernels.backend.resolve`; "triton" and "interpret" are the kernel where
    `flashsvd.kernels.rebuild.tiles.rebuild_takes` the call, and else a batched product per run and the rotary op.

    Returns a new contiguous [B, S, heads·h]. Raises InputError when shapes, dtypes, devices or memory do not fit,
    DeviceError when the backend cannot run on the tensors' device.

    Source: FlashSVD, arXiv 2508.01506, for rebuilding heads from their factors; RoFormer, arXiv 2104.09864, for the
    turn, in the half-split form of GPT-NeoX.

    >>> p, second = torch.ones(1, 1, 2), torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    >>> quarter = torch.zeros(1, 1, 4), torch.ones(1, 1, 4)
    >>> rebuild_rotated(p, second, None, *quarter, runs=(Run(head=0, count=2, rank=1, at=0),)).tolist()
    [[[-3.0, -4.0, 1.0, 2.0, -7.0, -8.0, 5.0, 6.0]]]
    """
    key = looks((p, second, bias, cos, sin), runs, backend)
    start = _starts.find(key)
    if start is None:
        start = _starts.keep(key, _prepared(p, second, bias, cos, sin, runs, backend))
    return start(p, second, bias, cos, sin)


def _prepared(
    p: torch.Tensor,
    second: torch.Tensor,
    bias: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    runs: Sequence[Run],
    backend: str | None,
) -> Start:
    """What rebuilds and turns heads of tensors that look like these, which are checked; it keeps none of them."""
    for name, tensor, letters in (
        ("p", p, "[B, S, R]"),
        ("second", second, "[Rqk, h]"),
        ("cos", cos, "[B or 1, S, h]"),
        ("sin", sin, "[B or 1, S, h]"),
    ):
        check_activation(name, tensor)
        if tensor.dim() != letters.count(",") + 1:
            raise InputError(f"{name} must be {letters}, got shape {list(tensor.shape)}")
    heads, columns = check_runs(runs)
    batch, seq, width = p.shape
    head_dim = second.shape[1]
    if width < columns:
        raise InputError(f"p must have the {columns} columns that the runs name, got {width}")
    if head_dim % 2 or not 2 <= head_dim <= MAX_HEAD_DIM:
        raise InputError(
            f"second must be [Rqk, h] of an even head dim h from 2 to {MAX_HEAD_DIM}, got {list(second.shape)}"
        )
    check_tensor("second", second, (columns, head_dim), p, like_name="p")
    if bias is not None:
        check_tensor("bias", bias, (heads * head_dim,), p, like_name="p")
    for name, whole in (("second", second), ("bias", bias)):
        if whole is not None and not whole.is_contiguous():
            raise InputError(
                f"{name} must be contiguous, got strides {list(whole.stride())}; call .contiguous() on it"
            )
    try:
        rows = p.view(batch * seq, width)
    except RuntimeError:
        raise InputError(
            f"the rows of p must be at equal distance, got strides {list(p.stride())}; call .contiguous() on it"
        ) from None
    if cos.shape[0] not in (batch, 1) or cos.shape[1:] != (seq, head_dim):
        raise InputError(
            f"cos must be [{batch} or 1, {seq}, {head_dim}], a row per token of p, got {list(cos.shape)}"
        )
    check_tensor("sin", sin, tuple(cos.shape), cos, like_name="cos")
    if cos.device != p.device:
        raise InputError(f"cos is on {cos.device} but p on {p.device}; move one of them")
    chosen = resolve(backend, p.device)
    if chosen == "naive":
        return functools.partial(_naive, tuple(runs))
    if batch * seq and chosen != "torch" and rebuild_takes(rows, second, runs):
        from flashsvd.kernels.rebuild.launch import prepare_rebuild

        return prepare_rebuild(p, second, bias, cos, sin, runs)
    # The rotary kernel does not take fp64 either.
    return functools.partial(_stream, tuple(runs), "torch" if p.dtype == torch.float64 else chosen)


@torch.no_grad()
def _naive(
    runs: Sequence[Run],
    p: torch.Tensor,
    second: torch.Tensor,
    bias: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    return naive_rebuild(p, second, bias, cos, sin, runs)


def _stream(
    runs: Sequence[Run],
    turn_backend: Backend,
    p: torch.Tensor,
    second: torch.Tensor,
    bias: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    return stream_rebuild(p, second, bias, cos, sin, runs, turn_backend)
