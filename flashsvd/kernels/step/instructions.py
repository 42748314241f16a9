"""What a decode step is made of: instructions over tensors, run one after another.

A program is a model as the next token needs it. Every instruction names the tensors that it reads and writes, all of
them there when the program is made, so that a step allocates nothing. B is the number of sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Squares:
    """Where the squares of a hidden state's rows are summed, for the RMS norm of whoever reads it: fp32 [B, parts], of
    which a backend uses as many parts as it likes; `width` is that of the hidden state."""

    parts: torch.Tensor
    width: int


@dataclass(frozen=True, eq=False)
class Scaled:
    """A hidden state as the next RMS norm wants it: times the norm's weight, and the sums of its squares.

    weight [N], scaled [B, N]. 1 / sqrt(mean + eps), which is the same for a row, is left to the product that reads it.
    """

    weight: torch.Tensor
    scaled: torch.Tensor
    squares: Squares


@dataclass(frozen=True, eq=False)
class Embed:
    """out = table[token], and positions[place - first + offset] added where there are learned positions.

    table [V, N]; positions [P, N] or None; out [B, N].
    """

    table: torch.Tensor
    positions: torch.Tensor | None
    offset: int
    out: torch.Tensor
    next: Scaled | None


@dataclass(frozen=True, eq=False)
class Norm:
    """out = LayerNorm(x)·weight + bias, [B, N]."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    out: torch.Tensor


@dataclass(frozen=True, eq=False)
class Product:
    """x·weightᵀ / sqrt(mean + eps) + bias.

    x [B, K], weight [N, K], bias [N] or None; K and the strides of both are multiples of 8. normed: the squares whose
    mean it is, where x is a hidden state times a norm's weight.
    """

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    normed: Squares | None = None


@dataclass(frozen=True, eq=False)
class Rows:
    """out = product, by way of the options below, in their order.

    activated: the program's activation. up: times a second product. added: this plus that, [B, N]; it may be out. next:
    what is left for the RMS norm of whoever reads out. out [B, N], of the weights' dtype or fp32.
    """

    product: Product
    out: torch.Tensor
    activated: bool = False
    up: Product | None = None
    added: torch.Tensor | None = None
    next: Scaled | None = None


@dataclass(frozen=True, eq=False)
class HeadFactor:
    """One head: p[:, column : column + rank] · u, u [rank, h], into columns `at` to at + h."""

    column: int
    u: torch.Tensor
    at: int


@dataclass(frozen=True, eq=False)
class Heads:
    """Heads from rank-space activations p [B, R]: out fp32 [shares, B, columns], of which only the sum over shares
    counts."""

    p: torch.Tensor
    factors: tuple[HeadFactor, ...]
    out: torch.Tensor


@dataclass(frozen=True, eq=False)
class Attend:
    """Attention of the new token over a cache, which it is appended to.

    heads fp32 [shares, B, columns]: q [H·d] from column 0, k [Hk·d] from k_at, v [Hk·dv] from v_at; bias [columns] or
    None. Rounded, q and k go through RMS norms q_norm and k_norm [d], where there are, and are turned where the program
    has cosines. k_cache [B, Hk, capacity, d], v_cache [B, Hk, capacity, dv], d and dv multiples of 8. window: how many
    places back a query sees, None for all. scale: of the scores. out [B, H·dv].
    """

    heads: torch.Tensor
    bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    k_at: int
    v_at: int
    window: int | None
    scale: float
    out: torch.Tensor


Instruction = Embed | Norm | Rows | Heads | Attend


@dataclass(frozen=True, eq=False)
class Program:
    """Instructions and what all of them share.

    tokens int64 [B]: read by Embed. place int32 []: the place in the caches that the new token takes. first int32 [B]:
    the first place of every sequence that holds a token, so that its position is place - first. turns: cosines and
    sines fp32 [positions, d] of rotary positions, both halves alike, or None. heads: of q. eps: of every norm.
    activation: as the feed-forward ops name it.
    """

    instructions: tuple[Instruction, ...]
    tokens: torch.Tensor
    place: torch.Tensor
    first: torch.Tensor
    turns: tuple[torch.Tensor, torch.Tensor] | None
    heads: int
    eps: float
    activation: str

    @property
    def batch(self) -> int:
        return len(self.tokens)
