"""What one layer of a decoder computes with: its projections packed into as few products as there can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import pad

from flashsvd.engines.absorb import (
    ALIGN,
    AbsorbedScores,
    AbsorbedValues,
    absorb_scores,
    absorb_values,
    aligned,
    can_absorb,
    padded_rank,
)
from flashsvd.engines.modules import HeadLowRankLinear, LowRankLinear
from flashsvd.engines.sublayer import bias_of, second_of
from flashsvd.kernels.layout import HeadLayout

CacheKind = Literal["dense", "rank"]
CACHES: tuple[CacheKind, ...] = ("dense", "rank")
"""What is kept of the keys and values: heads at head dim, as transformers keeps them, or their rank-space part."""


@dataclass(frozen=True)
class Heads:
    """How the heads of q, k or v come out of P = x·firstᵀ + first_bias.

    With `u` None the columns at, at + 1, ... are the heads side by side, heads·width of them. Else head i is
    P[.., at + its columns] · u[its rows] + bias[i·width : (i + 1)·width], with columns and rows of `layout`.
    """

    at: int
    """First column of P."""
    columns: int
    """How many columns of P are read."""
    heads: int
    width: int
    """Columns per head in what is attended to: the head dim, or a rank that is kept."""
    u: torch.Tensor | None
    """[u_rows, head_dim], contiguous; ranks are padded to multiples of 8."""
    layout: HeadLayout | None
    """None exactly when u is."""
    bias: torch.Tensor | None
    """[heads·head_dim]; None with u None, as it is in first_bias then."""


@dataclass(frozen=True)
class CausalParts:
    """Attention of one layer. `first` [R, d] is contiguous, R a multiple of 8; `out` is (W [d, H·v.width],) or the
    output projection's two factors (V [Ro, H·v.width], U [d, Ro]), Ro a multiple of 8. Query head i reads kv head
    i // (q.heads // k.heads)."""

    first: torch.Tensor
    first_bias: torch.Tensor | None
    q: Heads
    k: Heads
    v: Heads
    out: tuple[torch.Tensor, ...]
    out_bias: torch.Tensor | None
    scale: float


def causal_parts(
    q: nn.Module,
    k: nn.Module,
    v: nn.Module,
    o: nn.Module,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary: bool,
    head_norms: bool,
    cache: CacheKind,
    scale: float | None = None,
) -> CausalParts:
    """Packs one layer's projections. Parameters of the modules become views of what is packed wherever their rows are
    there as they are, so that weights exist once.

    cache "rank" leaves v in rank space where its heads have factors of their own of less than the head dim, every head
    padded to the largest rank (v's second factors and bias are folded into the output projection), and q and k, too,
    where no rotary positions and no norms come between their factors (`flashsvd.engines.absorb`). What does not
    allow it is rebuilt at head dim, as everything is with "dense". k that is turned is among that: of h columns at rank
    r, every step would make each key of each head anew, 2·h·r FLOPs, and turn it by 4·h bytes of cosines and sines, to
    save 2·(h - r) bytes of the cache. scale: 1 / sqrt(head_dim) unless given.
    """
    values = scores = None
    if cache == "rank":
        if not (rotary or head_norms):
            scores = _scores(q, k, heads, kv_heads, head_dim)
        values = _values(v, o, heads, kv_heads, head_dim)
    if scores is not None:
        width = scores.layout.max_rank
        sides = [_Side(scores.q, scores.q_bias, heads, width), _Side(scores.k, None, kv_heads, width, k)]
    else:
        sides = [_side(q, heads, head_dim), _side(k, kv_heads, head_dim)]
    sides.append(
        _side(v, kv_heads, head_dim)
        if values is None
        else _Side(values.v, None, kv_heads, values.layout.max_rank, v)
    )
    first = joined([side.rows for side in sides])
    starts = [0]
    for side in sides:
        view_rows(side.owner, first[starts[-1] : starts[-1] + len(side.rows)])
        starts.append(starts[-1] + len(side.rows))
    packed = [side.heads_at(at) for side, at in zip(sides, starts, strict=False)]
    out, out_bias = _output(o, values)
    return CausalParts(
        first, _biases(sides), packed[0], packed[1], packed[2], out, out_bias, scale or head_dim**-0.5
    )


@dataclass(frozen=True)
class _Side:
    """q, k or v before it is packed: rows [R, d] of the first product, R a multiple of ALIGN, their bias [R] or None,
    and of `Heads` the rest. `owner`: the module whose first factor (or weight) the rows may be."""

    rows: torch.Tensor
    row_bias: torch.Tensor | None
    heads: int
    width: int
    owner: nn.Module | None = None
    u: torch.Tensor | None = None
    layout: HeadLayout | None = None
    bias: torch.Tensor | None = None

    def heads_at(self, at: int) -> Heads:
        columns = self.heads * self.width if self.layout is None else self.layout.p_width
        return Heads(at, columns, self.heads, self.width, self.u, self.layout, self.bias)


def _side(module: nn.Module, heads: int, head_dim: int) -> _Side:
    """A projection whose heads are attended to at head dim."""
    if not isinstance(module, HeadLowRankLinear):
        rows, bias = module.get_parameter("weight").detach(), bias_of(module)
        missing = -len(rows) % ALIGN
        row_bias = None if bias is None else pad(bias.detach(), (0, missing))
        return _Side(_padded(rows, len(rows) + missing), row_bias, heads, head_dim, module)
    ranks = module.layout.ranks
    wide = tuple(padded_rank(rank) for rank in ranks)
    layout = HeadLayout(wide, shared=module.layout.shared)
    u, v = module.U.detach(), module.V.detach()
    if wide != ranks:
        u = _each_padded(u, ranks, wide)
        v = _padded(v, wide[0]) if layout.shared else _each_padded(v, ranks, wide)
    bias = None if module.bias is None else module.bias.detach()
    return _Side(v, None, heads, head_dim, module, u.contiguous(), layout, bias)


def _scores(q: nn.Module, k: nn.Module, heads: int, kv_heads: int, head_dim: int) -> AbsorbedScores | None:
    """The scores at rank, None where they are no narrower than at head dim."""
    if not can_absorb((q, k)) or min(_max_rank(q, head_dim), _max_rank(k, head_dim)) >= head_dim:
        return None
    found = absorb_scores(q, k, heads=heads, kv_heads=kv_heads, head_dim=head_dim, even=True)
    return found if found.layout.max_rank <= head_dim else None


def _values(v: nn.Module, o: nn.Module, heads: int, kv_heads: int, head_dim: int) -> AbsorbedValues | None:
    """v in rank space, None where it would be no narrower than at head dim."""
    rank = _max_rank(v, head_dim)
    if not can_absorb((v,)) or rank >= head_dim or padded_rank(rank) > head_dim:
        return None
    return absorb_values(v, o, heads=heads, kv_heads=kv_heads, head_dim=head_dim, even=True)


def _max_rank(module: nn.Module, head_dim: int) -> int:
    return module.layout.max_rank if isinstance(module, HeadLowRankLinear) else head_dim


def _output(
    o: nn.Module, values: AbsorbedValues | None
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
    if values is None:
        out = factors_of(o)
        return out or (o.get_parameter("weight").detach(),), bias_of(o)
    if values.whole:
        return (values.out,), values.out_bias
    u, first = aligned(second_of(o).detach(), values.out)
    return (first, u), values.out_bias


def factors_of(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A linear's factors (V [k, in], U [out, k]) with k padded to a multiple of ALIGN, of which its own become views;
    None for a dense one."""
    if not isinstance(module, LowRankLinear):
        return None
    rank = module.V.shape[0]
    u, v = aligned(module.U.detach(), module.V.detach())
    if len(v) != rank:
        module.U = nn.Parameter(u[:, :rank], requires_grad=False)
        module.V = nn.Parameter(v[:rank], requires_grad=False)
    return v, u


def _biases(sides: Sequence[_Side]) -> torch.Tensor | None:
    if all(side.row_bias is None for side in sides):
        return None
    return torch.cat(
        [
            side.rows.new_zeros(len(side.rows)) if side.row_bias is None else side.row_bias.to(side.rows)
            for side in sides
        ]
    )


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Matrices [n, d] one under the other, contiguous; the memory that they are in where they lie so already, as in a
    model that was packed before."""
    head, end = parts[0], parts[0].storage_offset()
    for part in parts:
        alike = part.untyped_storage().data_ptr() == head.untyped_storage().data_ptr()
        if not alike or not part.is_contiguous() or part.storage_offset() != end:
            return torch.cat(list(parts))
        end += part.numel()
    return head.as_strided((sum(len(part) for part in parts), head.shape[1]), (head.shape[1], 1))


def view_rows(module: nn.Module | None, rows: torch.Tensor) -> None:
    """Makes a module's first factor or weight a view of packed `rows`, if it is what they start with; they may end in
    rows of zeros."""
    if module is None:
        return
    name = "weight" if isinstance(module, nn.Linear) else "V"
    own = module.get_parameter(name)
    if len(own) <= len(rows) and torch.equal(own, rows[: len(own)]):
        setattr(module, name, nn.Parameter(rows[: len(own)], requires_grad=False))


def _padded(rows: torch.Tensor, to: int) -> torch.Tensor:
    return rows if len(rows) == to else pad(rows, (0, 0, 0, to - len(rows)))


def _each_padded(factor: torch.Tensor, ranks: Sequence[int], wide: Sequence[int]) -> torch.Tensor:
    """Rows [R, n] head by head, each padded by zeros from its rank to `wide`."""
    parts = zip(factor.split(list(ranks)), wide, strict=True)
    return torch.cat([_padded(part, to) for part, to in parts])
