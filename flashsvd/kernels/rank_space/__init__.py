"""Attention in rank space: the factors are absorbed when a model is loaded, and q, k, v are never rebuilt.

With q = Pq·Aq + bq and k = Pk·Ak + bk, a row of scores is (Pq·Aq + bq)·Akᵀ·Pkᵀ plus a term that is the same for
all keys, which softmax does not see. The first product, with bq, folds into the projection that makes q; Av
folds into the output projection, as rows of softmax sum to one. What is left, and is computed here, is
ordinary attention whose head dim is the rank.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import (
    check_activation,
    check_key_mask,
    check_tensor,
    check_window,
    count_keys,
    may_overlap,
)
from flashsvd.kernels.backend import Backend, resolve
from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.rank_space.naive import naive_rank_space
from flashsvd.kernels.rank_space.stream import stream_rank_space
from flashsvd.kernels.starter import Kept, looks

__all__ = ["rank_space_attention"]

Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], object]
"""Attends with q, k, v and a key mask, into out, which comes fourth."""


@dataclass(frozen=True)
class _Inputs:
    """What is known of all inputs that look alike: they fit, and this is what comes of them."""

    shape: tuple[int, int, int]
    backend: Backend
    starts: Kept[Start] = field(default_factory=lambda: Kept(16))
    """By what `out` looks like and how far it is from q, k and v."""


_inputs: Kept[_Inputs] = Kept()


def rank_space_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int = 1,
    scale: float = 1.0,
    key_mask: torch.Tensor | None = None,
    window: int | None = None,
    causal: bool = False,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """softmax(q kᵀ·scale) v per head, at head dims that are the heads' ranks; inference only, no gradients.

    score, value: the ranks of the kv heads, in q and k and in v. k is [B, T, score.p_width] and v
    [B, T, value.p_width], where T is S unless `causal`, kv head i in the columns of its span. `kv_group` query heads in
    a row read one kv head, so each has that head's ranks: q is [B, S, kv_group * score.p_width] and the output
    [B, S, kv_group * value.p_width], in the layouts with every rank repeated kv_group times. Their last
    stride is 1 and the others are free, as for column slices of one packed product. Ranks and strides that
    are multiples of 16 bytes are fast on a GPU, others right but several times slower.
    scale: above 0, and 1 unless given, as it can be absorbed with the factors.
    key_mask: bool [B, T], True where a key may be attended to; a query that sees no such key gives exactly 0.
    window: a query sees the keys at most this many places away, to either side, and every key for None.
    causal: a query sees no key behind its own place. There may then be T >= S keys, of which the queries are the last.
    out: takes the result, and is returned. It may be q itself where score and value have the same ranks (a
    block of q is read before the output takes its place), and else shares no memory with q, k or v.
    backend: see `flashsvd.kernels.backend.resolve`.

    Raises InputError when shapes, dtypes, devices or memory do not fit, DeviceError when the backend cannot
    run on the tensors' device.

    Source: this package's derivation, and FlashAttention-2, arXiv 2307.08691, for the online softmax.

    >>> from flashsvd.kernels import HeadLayout, rank_space_attention
    >>> score, value = HeadLayout((3, 5)), HeadLayout((4, 2))
    >>> q, k, v = torch.randn(1, 7, 8 + 8 + 6).split((8, 8, 6), dim=-1)
    >>> rank_space_attention(q, k, v, score=score, value=value).shape
    torch.Size([1, 7, 6])
    """
    scale = float(scale)
    # Whole numbers are told from booleans and floats, which equal some.
    numbers = (kv_group, type(kv_group), window, type(window), causal, type(causal), scale)
    key = looks((q, k, v, key_mask), score, value, numbers, backend)
    inputs = _inputs.find(key)
    if inputs is None:
        shape = _check(q, k, v, score, value, kv_group, scale, key_mask, window, causal)
        inputs = _inputs.keep(key, _Inputs(shape, resolve(backend, q.device)))
    given = out is not None
    place: tuple[object, ...] | None
    if out is None:
        out = torch.empty(*inputs.shape, dtype=q.dtype, device=q.device)
        place = looks((out,))
    elif place := looks((out,)):
        at = out.data_ptr()
        place = (place, at - q.data_ptr(), at - k.data_ptr(), at - v.data_ptr())
    start = inputs.starts.find(place)
    if start is None:
        if given:
            _check_out(out, inputs.shape, q, k, v, score.ranks == value.ranks)
        options = (score, value, kv_group, scale, key_mask, window, causal)
        start = inputs.starts.keep(place, _prepared(inputs.backend, q, k, v, out, *options))
    start(q, k, v, out, key_mask)
    return out


def _prepared(
    backend: Backend,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int,
    scale: float,
    key_mask: torch.Tensor | None,
    window: int | None,
    causal: bool,
) -> Start:
    """What attends with tensors that look like these, which are checked; it keeps none of them."""
    if out.numel() == 0:
        return _nothing
    if backend in ("naive", "torch"):
        run = naive_rank_space if backend == "naive" else stream_rank_space
        return functools.partial(_in_torch, run, score, value, kv_group, scale, window, causal)
    from flashsvd.kernels.rank_space.launch import prepare_rank_space

    return prepare_rank_space(q, k, v, out, score, value, kv_group, scale, key_mask, window, causal)


def _nothing(*_: object) -> None:
    """Attention of no queries."""


@torch.no_grad()
def _in_torch(
    run: Callable[..., torch.Tensor],
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int,
    scale: float,
    window: int | None,
    causal: bool,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    key_mask: torch.Tensor | None,
) -> None:
    run(q, k, v, out, score, value, kv_group, scale, key_mask, window, causal)


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    score: HeadLayout,
    value: HeadLayout,
    kv_group: int,
    scale: float,
    key_mask: torch.Tensor | None,
    window: int | None,
    causal: bool,
) -> tuple[int, int, int]:
    """The output's shape, once every argument but `out` is known to fit."""
    for name, layout in (("score", score), ("value", value)):
        if not isinstance(layout, HeadLayout):
            raise InputError(f"{name} must be a HeadLayout, got {type(layout).__name__}")
        if layout.shared:
            raise InputError(
                f"{name} must give every head its own columns, got a shared layout; factor head by head"
            )
    if score.heads != value.heads:
        raise InputError(
            f"score and value must have as many heads, the kv heads, got {score.heads} and {value.heads}"
        )
    if not isinstance(kv_group, int) or isinstance(kv_group, bool) or kv_group < 1:
        raise InputError(f"kv_group must be a whole number of at least 1, got {kv_group!r}")
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"scale must be a finite number above 0, got {scale}; absorb a sign into q")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_activation(name, tensor)
    if q.dim() != 3:
        raise InputError(f"q must be [batch, sequence, width], got {list(q.shape)}")
    batch, seq = q.shape[:2]
    check_tensor("q", q, (batch, seq, kv_group * score.p_width), q, like_name="q")
    keys = count_keys(k, q, causal, name="k", like_name="q")
    check_tensor("k", k, (batch, keys, score.p_width), q, like_name="q")
    check_tensor("v", v, (batch, keys, value.p_width), q, like_name="q")
    if key_mask is not None:
        check_key_mask(key_mask, k, like_name="k")
    check_window(window)
    return batch, seq, kv_group * value.p_width


def _check_out(
    out: torch.Tensor,
    shape: tuple[int, int, int],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    same_ranks: bool,
) -> None:
    check_tensor("out", out, shape, q, like_name="q")
    check_activation("out", out)
    for name, tensor in (("k", k), ("v", v)):
        if may_overlap(out, tensor):
            raise InputError(
                f"out shares memory with {name}, which is read to the end; pass q or other memory"
            )
    if not may_overlap(out, q):
        return
    if out.data_ptr() != q.data_ptr() or out.stride() != q.stride():
        raise InputError("out shares memory with q but is not q; pass q itself or other memory")
    if not same_ranks:
        raise InputError(
            "out may be q only where score and value have the same ranks, as a head's output then takes that "
            "head's columns of q alone; pass other memory"
        )
