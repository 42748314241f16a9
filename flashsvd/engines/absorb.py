"""Factors folded into one another once, when a model is built, so that q, k and v are never rebuilt.

Without rotary positions, with q = Pq·Aq + bq, k = Pk·Ak + bk and v = Pv·Av + bv per head (P [S, r], A [r, h]), and
softmax over keys, which does not see what depends on the query row alone:

    q·kᵀ ~ (Pq·Aq·Akᵀ + bq·Akᵀ)·Pkᵀ            softmax(·)·v = (softmax(·)·Pv)·Av + bv

Aq·Akᵀ goes into q's first factor, bq·Akᵀ into a bias of it, Av into the output projection and bv into its bias.
Attention is then over rank-space tensors of as few columns per head as the smaller of the two ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from flashsvd.engines.modules import HeadLowRankLinear, LowRankLinear
from flashsvd.kernels.layout import HeadLayout

ALIGN = 8
"""Ranks are padded to multiples of this with zeros: 16 bytes in half precision, what loads and cuBLAS want. On an
H200 the two products of a feed-forward at rank 307 took 1027 us, at 240 170 us."""

WHOLE_FACTOR = 1.4
"""How many times the FLOPs of the two output products a single one may take: it reads and writes no rank-space tensor
between them, which stand for as much (two 17.7 us, one 13.5 by count, 8192 tokens, 480 columns, o's rank 240, H200)."""


@dataclass(frozen=True)
class Absorbed:
    """Attention of one layer in rank space.

    qkv [Rs + Rs + Rv, d] and qkv_bias [the same rows] or None project x to q', k and v, whose heads are laid out by
    `score` (q' and k, p_width Rs) and `value` (p_width Rv). out takes the heads' outputs to the hidden state, [d, Rv],
    where `whole`, and else to the output projection's rank space, [Ro, Rv]; out_bias is what the output projection
    then still has to add, [d] or None.
    """

    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    score: HeadLayout
    value: HeadLayout
    out: torch.Tensor
    out_bias: torch.Tensor | None
    whole: bool


@dataclass(frozen=True)
class AbsorbedScores:
    """The score side alone: q [H columns of its kv head's width, d] with q_bias [the same rows] or None, and k, whose
    kv heads `layout` describes."""

    q: torch.Tensor
    q_bias: torch.Tensor | None
    k: torch.Tensor
    layout: HeadLayout


@dataclass(frozen=True)
class AbsorbedValues:
    """The value side alone, for queries and keys that have to be rebuilt: v [Rv, d] projects x to the heads that
    `layout` describes; out, out_bias and whole are those of `Absorbed`, with as many columns as query heads read."""

    v: torch.Tensor
    layout: HeadLayout
    out: torch.Tensor
    out_bias: torch.Tensor | None
    whole: bool


@dataclass(frozen=True)
class _Head:
    """One head of a projection: y = x·vᵀ·u + b with v [r, d], u [r, h] or None for the identity, b [h] or None."""

    v: torch.Tensor
    u: torch.Tensor | None
    b: torch.Tensor | None

    @property
    def rank(self) -> int:
        return self.v.shape[0]


def can_absorb(modules: Sequence[nn.Module]) -> bool:
    """Whether q, k and v are per head or dense: heads that share one P would each need all of its columns."""
    return not any(isinstance(module, HeadLowRankLinear) and module.layout.shared for module in modules)


def absorb(q: nn.Module, k: nn.Module, v: nn.Module, o: nn.Module, *, heads: int, head_dim: int) -> Absorbed:
    """Folds the factors of one layer's attention; products in float64 (float32 on the half types), then cast.

    The score rank of a head is the smaller of its q and k ranks. Where q's is the smaller, the factors are folded
    into k's side, and bq·kᵀ, which does differ from key to key, becomes one more column: k's share of it times a
    constant 1 in q'.
    """
    like = next(q.parameters())
    scores = absorb_scores(q, k, heads=heads, kv_heads=heads, head_dim=head_dim)
    values = absorb_values(v, o, heads=heads, kv_heads=heads, head_dim=head_dim)
    qkv = torch.cat([scores.q, scores.k, values.v])
    bias = scores.q_bias
    if bias is not None:
        bias = torch.cat([bias, bias.new_zeros(qkv.shape[0] - bias.shape[0])])
    return Absorbed(
        qkv.to(like).contiguous(),
        bias,
        scores.layout,
        values.layout,
        values.out,
        values.out_bias,
        values.whole,
    )


def absorb_scores(
    q: nn.Module, k: nn.Module, *, heads: int, kv_heads: int, head_dim: int, even: bool = False
) -> AbsorbedScores:
    """The scores' side of `absorb`; `even` pads every head to the largest rank.

    Where query heads share a kv head, all are folded into its first factor, whatever their ranks.
    """
    like = next(q.parameters())
    wide = _wide(like)
    group = heads // kv_heads
    q_heads, k_heads = _heads(q, heads, head_dim, wide), _heads(k, kv_heads, head_dim, wide)
    scored = [_score(head, k_heads[i // group], shared=group > 1) for i, head in enumerate(q_heads)]
    rights = [right for _, _, right in scored[::group]]
    widths = _widths([len(right) for right in rights], even)
    q_widths = [widths[i // group] for i in range(heads)]
    q_bias = None
    if any(bias is not None for _, bias, _ in scored):
        biases = [left.new_zeros(len(left)) if bias is None else bias for left, bias, _ in scored]
        q_bias = torch.cat([_pad_rows(b, width) for b, width in zip(biases, q_widths, strict=True)]).to(like)
    return AbsorbedScores(
        torch.cat([_pad_rows(left, n) for (left, _, _), n in zip(scored, q_widths, strict=True)]).to(like),
        q_bias,
        torch.cat([_pad_rows(right, width) for right, width in zip(rights, widths, strict=True)]).to(like),
        HeadLayout(widths),
    )


def absorb_values(
    v: nn.Module, o: nn.Module, *, heads: int, kv_heads: int, head_dim: int, even: bool = False
) -> AbsorbedValues:
    """Folds v's second factors and bias into the output projection: rotary positions turn q and k, never v.

    Head i of the output reads kv head i // (heads // kv_heads). `even` pads every head to the largest rank.
    """
    like = next(v.parameters())
    wide = _wide(like)
    values = _heads(v, kv_heads, head_dim, wide)
    widths = _widths([head.rank for head in values], even)
    group = heads // kv_heads
    out, out_bias = _output(
        o,
        [values[i // group] for i in range(heads)],
        [widths[i // group] for i in range(heads)],
        head_dim,
        wide,
    )
    whole = not isinstance(o, LowRankLinear)
    if isinstance(o, LowRankLinear) and one_product(out.shape[1], o.U.shape[1], o.U.shape[0]):
        out, whole = o.U.detach().to(wide) @ out, True
    return AbsorbedValues(
        torch.cat([_pad_rows(head.v, width) for head, width in zip(values, widths, strict=True)])
        .to(like)
        .contiguous(),
        HeadLayout(widths),
        out.to(like).contiguous(),
        None if out_bias is None else out_bias.to(like),
        whole,
    )


def _wide(like: torch.Tensor) -> torch.dtype:
    """What products of factors are made in."""
    return torch.float32 if like.dtype in (torch.float16, torch.bfloat16) else torch.float64


def _widths(ranks: Sequence[int], even: bool) -> tuple[int, ...]:
    """Columns per head: its rank, or the largest, padded."""
    padded = [padded_rank(rank) for rank in ranks]
    return (max(padded),) * len(padded) if even else tuple(padded)


def one_product(width: int, rank: int, hidden: int) -> bool:
    """Whether one product from the heads' `width` columns to the hidden state replaces the two by way of the output
    projection's rank.

    >>> one_product(480, 240, 768), one_product(768, 192, 768)
    (True, False)
    """
    return width * hidden <= WHOLE_FACTOR * rank * (width + hidden)


def _heads(module: nn.Module, heads: int, head_dim: int, dtype: torch.dtype) -> list[_Head]:
    """Every head of a projection, in a wider dtype."""
    biases: Sequence[torch.Tensor | None] = [None] * heads
    if isinstance(module.bias, torch.Tensor):
        biases = module.bias.detach().to(dtype).split(head_dim)
    if isinstance(module, HeadLowRankLinear):
        ranks = list(module.layout.ranks)
        firsts, seconds = module.V.detach().to(dtype).split(ranks), module.U.detach().to(dtype).split(ranks)
        return [_Head(v, u, b) for v, u, b in zip(firsts, seconds, biases, strict=True)]
    assert isinstance(module, nn.Linear)
    rows = module.weight.detach().to(dtype).split(head_dim)
    return [_Head(v, None, b) for v, b in zip(rows, biases, strict=True)]


def _score(
    q: _Head, k: _Head, *, shared: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(q' [r, d], its bias [r] or None, k' [r, d]) such that q'·k'ᵀ is q·kᵀ up to a term of the query row; with
    `shared`, k' is k's own first factor."""
    if shared or k.rank <= q.rank + (q.b is not None):
        left = q.v if q.u is None else q.u.T @ q.v
        bias = q.b
        if k.u is not None:
            left = k.u @ left
            bias = None if bias is None else k.u @ bias
        return left, bias, k.v
    right = k.v if k.u is None else k.u.T @ k.v
    own = right
    if q.u is not None:
        right = q.u @ right
    if q.b is None:
        return q.v, None, right
    left = torch.cat([q.v, torch.zeros_like(q.v[:1])])
    bias = left.new_zeros(left.shape[0])
    bias[-1] = 1.0
    return left, bias, torch.cat([right, (q.b @ own)[None]])


def _output(
    o: nn.Module, values: Sequence[_Head], widths: Sequence[int], head_dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The output projection's first factor (or dense weight) with the second factor of the head of v that each of its
    heads reads folded in, padded to `widths`, and its whole bias."""
    low_rank = isinstance(o, LowRankLinear)
    first = (o.V if isinstance(o, LowRankLinear) else o.get_parameter("weight")).detach().to(dtype)
    blocks = []
    for head, width, part in zip(values, widths, first.split(head_dim, 1), strict=True):
        folded = part if head.u is None else part @ head.u.T
        blocks.append(nn.functional.pad(folded, (0, width - head.rank)))
    bias = o.bias.detach().to(dtype) if isinstance(o.bias, torch.Tensor) else None
    if any(head.b is not None for head in values):
        through = first @ torch.cat(
            [first.new_zeros(head_dim) if head.b is None else head.b for head in values]
        )
        if low_rank:
            assert isinstance(o, LowRankLinear)
            through = o.U.detach().to(dtype) @ through
        bias = through if bias is None else bias + through
    return torch.cat(blocks, 1), bias


def padded_rank(rank: int) -> int:
    """The next multiple of ALIGN."""
    return -(-rank // ALIGN) * ALIGN


def _pad_rows(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Rows of zeros up to `rows`."""
    missing = rows - tensor.shape[0]
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor


def aligned(u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two factors u [out, k], v [k, in] with k padded by zeros to a multiple of ALIGN; themselves where it is one."""
    rank = v.shape[0]
    wide = padded_rank(rank)
    return (u, v) if wide == rank else (nn.functional.pad(u, (0, wide - rank)), _pad_rows(v, wide))
