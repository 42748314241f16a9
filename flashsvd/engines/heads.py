"""The heads of q, k or v out of the packed product that they are columns of."""

from __future__ import annotations

import dataclasses

import torch

from flashsvd.engines.packed import runs_of
from flashsvd.engines.parts import Heads
from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.rebuild import rebuild_rotated
from flashsvd.kernels.rotary import rotate_heads
from flashsvd.kernels.rotary.stream import stream_rotary

Rotation = tuple[torch.Tensor, torch.Tensor]


def some_heads(heads: Heads, first: int, last: int) -> Heads:
    """Heads `first` to `last` alone; views of the same factors."""
    if (first, last) == (0, heads.heads):
        return heads
    count, width = last - first, heads.width
    if heads.u is None or heads.layout is None:
        return dataclasses.replace(heads, at=heads.at + first * width, columns=count * width, heads=count)
    layout = HeadLayout(heads.layout.ranks[first:last], shared=heads.layout.shared)
    column, row, _ = heads.layout.spans[first]
    return Heads(
        heads.at + column,
        layout.p_width,
        count,
        width,
        heads.u[row : row + layout.u_rows],
        layout,
        None if heads.bias is None else heads.bias[first * width : last * width],
    )


def made_heads(
    p: torch.Tensor, heads: Heads, *, shift: int = 0, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The heads side by side, [b, s, heads·width], of p [b, s, R], whose first column is column `shift` of P.

    They are columns of p itself where nothing is to be rebuilt and there is no `out`; out may be rows of a wider
    batch, at equal distance.
    """
    at = heads.at - shift
    if heads.u is None or heads.layout is None:
        columns = p[..., at : at + heads.columns]
        return columns if out is None else out.copy_(columns)
    if out is None:
        out = torch.empty(*p.shape[:2], heads.heads * heads.width, dtype=p.dtype, device=p.device)
    # [M, R], [heads, M, width]
    rows, places = p.flatten(0, 1), out.view(-1, heads.heads, heads.width).transpose(0, 1)
    if heads.layout.shared:
        left = rows[:, at : at + heads.columns].expand(heads.heads, -1, -1)
        torch.bmm(left, heads.u.view(heads.heads, -1, heads.width), out=places)
    else:
        for run in runs_of(heads.layout.ranks):
            left = rows[:, at + run.at : at + run.columns.stop].unflatten(1, (run.count, run.rank))
            right = heads.u[run.columns].view(run.count, run.rank, heads.width)
            torch.bmm(left.transpose(0, 1), right, out=places[run.head : run.head + run.count])
    return out if heads.bias is None else out.add_(heads.bias)


def turned_heads(
    p: torch.Tensor, heads: Heads, rotation: Rotation, *, shift: int = 0, backend: str | None = None
) -> torch.Tensor:
    """`made_heads` turned by the place of their token, in one kernel where the heads have factors of their own."""
    if heads.u is None or heads.layout is None or heads.layout.shared or heads.heads < 2:
        found = made_heads(p, heads, shift=shift)
        turn(found, heads.heads, rotation, backend)
        return found
    columns = p[..., heads.at - shift :]
    return rebuild_rotated(
        columns, heads.u, heads.bias, *rotation, runs=runs_of(heads.layout.ranks), backend=backend
    )


def turn(heads: torch.Tensor, count: int, rotation: Rotation, backend: str | None) -> None:
    """Turns `count` heads side by side, [b, s, count·h], where they are."""
    if count == 1:
        # The kernel wants two tensors of heads.
        stream_rotary(heads, *rotation)
        return
    left, right = heads.tensor_split((count // 2 * rotation[0].shape[-1],), -1)
    rotate_heads(left, right, *rotation, backend=backend)
