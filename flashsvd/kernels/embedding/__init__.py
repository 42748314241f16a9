"""Rows of embedding tables, added up and normed: one read of each row and one write of the hidden state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from flashsvd.errors import InputError
from flashsvd.kernels.arguments import check_activation, check_tensor
from flashsvd.kernels.backend import resolve
from flashsvd.kernels.embedding.naive import naive_embed_norm
from flashsvd.kernels.embedding.stream import stream_embed_norm
from flashsvd.kernels.norm import KINDS, Kind
from flashsvd.kernels.starter import Kept, looks

__all__ = ["INDEX_DTYPES", "MAX_TABLES", "embed_norm"]

INDEX_DTYPES = (torch.int64, torch.int32)
MAX_TABLES = 3

Vector = torch.Tensor | None
Start = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor], torch.Tensor, Vector, Vector], torch.Tensor]
"""Looks up and norms with tables, indices, weight, shift and bias."""
Write = Callable[
    [Sequence[torch.Tensor], Sequence[torch.Tensor], torch.Tensor, Vector, Vector, torch.Tensor], object
]
"""The same, to an output that comes last."""

_starts: Kept[Start] = Kept()


def embed_norm(
    tables: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    *,
    bias: torch.Tensor | None = None,
    kind: Kind = "layer",
    backend: str | None = None,
) -> torch.Tensor:
    """norm(sum of tables[i][indices[i]] + bias)·weight + shift, as a new tensor [B, S, N]; no gradients.

    tables: one to three [V_i, N], last stride 1. indices: as many int64 or int32 tensors; the first is [B, S], the
    others [B, S] or [1, S], the same for every sequence. weight [N]; shift, bias: [N] or None. Sums and statistics
    are in fp32 (fp64 for fp64). kind: as in `flashsvd.kernels.norm.fused_norm`. backend: see
    `flashsvd.kernels.backend.resolve`.

    Nothing of the size of the output is alive beside it, except in the naive backend.

    Raises InputError when shapes, dtypes or devices do not fit. An index that is not a row of its table is an
    IndexError of torch on the CPU and torch's device-side assertion on CUDA; the Triton kernel reads nothing for it
    and fills that row of the output with NaN.

    Source: the sum is BERT's input representation, Devlin et al. 2019, arXiv 1810.04805.

    >>> words, positions = torch.randn(100, 8), torch.randn(16, 8)
    >>> ids = torch.tensor([[7, 8, 9], [9, 8, 7]])
    >>> embed_norm((words, positions), (ids, torch.arange(3)[None]), torch.ones(8), None, 1e-6).shape
    torch.Size([2, 3, 8])
    """
    eps = float(eps)
    key = looks((*tables, *indices, weight, shift, bias), len(tables), eps, kind, backend)
    start = _starts.find(key)
    if start is None:
        start = _starts.keep(key, _prepared(tables, indices, weight, shift, eps, bias, kind, backend))
    return start(tables, indices, weight, shift, bias)


def _prepared(
    tables: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    eps: float,
    bias: torch.Tensor | None,
    kind: Kind,
    backend: str | None,
) -> Start:
    """What looks up and norms tensors that look like these, which are checked; it keeps none of them."""
    _check(tables, indices, kind)
    first = tables[0]
    for name, vector in (("weight", weight), ("shift", shift), ("bias", bias)):
        if vector is not None:
            check_tensor(name, vector, (first.shape[1],), first, like_name="tables[0]")
            check_activation(name, vector)
    chosen = resolve(backend, first.device)
    if chosen == "naive":
        return functools.partial(_naive, eps, kind)
    shape, dtype, device = (*indices[0].shape, first.shape[1]), first.dtype, first.device
    out = torch.empty(*shape, dtype=dtype, device=device)
    write: Write
    if out.numel() == 0:
        write = _nothing
    elif chosen == "torch":
        write = functools.partial(_in_torch, eps, kind)
    else:
        from flashsvd.kernels.embedding.launch import prepare_embed_norm

        write = prepare_embed_norm(tables, indices, shift, eps, bias, kind, out)

    def start(
        tables: Sequence[torch.Tensor],
        indices: Sequence[torch.Tensor],
        weight: torch.Tensor,
        shift: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        out = torch.empty(shape, dtype=dtype, device=device)
        write(tables, indices, weight, shift, bias, out)
        return out

    return start


def _nothing(*_: object) -> None:
    """The embedding of no tokens."""


@torch.no_grad()
def _naive(
    eps: float,
    kind: Kind,
    tables: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return naive_embed_norm(tables, indices, weight, shift, eps, bias, kind)


@torch.no_grad()
def _in_torch(
    eps: float,
    kind: Kind,
    tables: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    weight: torch.Tensor,
    shift: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    expanded = [index.expand(out.shape[:2]) for index in indices]
    stream_embed_norm(tables, expanded, weight, shift, eps, bias, kind, out)


def _check(tables: Sequence[torch.Tensor], indices: Sequence[torch.Tensor], kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not 1 <= len(tables) <= MAX_TABLES or len(indices) != len(tables):
        raise InputError(
            f"tables must be 1 to {MAX_TABLES} matrices, and indices as many tensors, got {len(tables)} and "
            f"{len(indices)}"
        )
    first = tables[0]
    for i, table in enumerate(tables):
        name = f"tables[{i}]"
        check_activation(name, table)
        if table.dim() != 2:
            raise InputError(f"{name} must be [rows, N], got {list(table.shape)}")
        check_tensor(name, table, (table.shape[0], first.shape[1]), first, like_name="tables[0]")
    for i, index in enumerate(indices):
        _check_index(f"indices[{i}]", index, indices[0], first.device)


def _check_index(name: str, index: torch.Tensor, first: torch.Tensor, device: torch.device) -> None:
    if not isinstance(index, torch.Tensor):
        raise InputError(f"{name} must be a tensor, got {type(index).__name__}")
    if index.dtype not in INDEX_DTYPES:
        raise InputError(f"{name} must be int64 or int32, got {index.dtype}; cast it")
    if first.dim() != 2:
        raise InputError(f"indices[0] must be [batch, sequence], got {list(first.shape)}")
    batch, seq = first.shape
    if tuple(index.shape) not in ((batch, seq), (1, seq)):
        raise InputError(f"{name} must be [{batch}, {seq}] or [1, {seq}], got {list(index.shape)}")
    if index.device != device:
        raise InputError(f"{name} is on {index.device} but tables[0] on {device}; move one of them")
