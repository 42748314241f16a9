"""Calls of the step's kernels: a few instructions that one kernel's work is in the middle of."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from kernel_calls import EPS, KernelCall

from flashsvd.kernels.step import (
    Attend,
    Embed,
    HeadFactor,
    Heads,
    Instruction,
    Product,
    Program,
    Rows,
    Scaled,
    Squares,
    prepare_step,
)
from flashsvd.kernels.step.tiles import WIDE_BATCH


@dataclass(frozen=True)
class FeedForwardInputs:
    """A token's hidden state through a norm, a gated product and a second one that is added to it."""

    table: torch.Tensor
    gain: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor
    down: torch.Tensor
    tokens: torch.Tensor

    def run(self, backend: str | None, out: torch.Tensor | None) -> torch.Tensor:
        table = self.table.contiguous()
        batch, hidden, (width, _) = len(self.tokens), table.shape[1], self.gate.shape
        x, scaled, wide = (_like(table, batch, size) for size in (hidden, hidden, width))
        out = _like(table, batch, hidden) if out is None else out
        left = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device)
        residual = left.copy_(table[self.tokens])
        squares = Squares(_fp32(table, batch, hidden), hidden)
        steps = (
            Embed(table, None, 0, x, Scaled(self.gain, scaled, squares)),
            Rows(
                Product(scaled, self.gate, self.bias, squares),
                wide,
                activated=True,
                up=Product(scaled, self.up, self.bias, squares),
            ),
            Rows(Product(wide, self.down, None), out, added=residual),
        )
        _run(steps, self.tokens, 0, 1, backend)
        return out


@dataclass(frozen=True)
class AttentionInputs:
    """Heads from their factors, turned, appended to caches and attended."""

    p: torch.Tensor
    factors: torch.Tensor
    """[heads of q, k and v, rank, d]."""
    bias: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    turns: tuple[torch.Tensor, torch.Tensor]
    first: torch.Tensor
    shares: int
    window: int | None

    def run(self, backend: str | None, out: torch.Tensor | None) -> torch.Tensor:
        count, rank, d = self.factors.shape
        k_cache, v_cache = self.k_cache.contiguous().clone(), self.v_cache.contiguous().clone()
        batch, kv_heads, capacity, _ = k_cache.shape
        heads = count - 2 * kv_heads
        factors = [
            HeadFactor(head % 2 * rank, self.factors[head].contiguous(), head * d) for head in range(count)
        ]
        made = _fp32(self.p, self.shares, batch, count * d).zero_()
        attended = _like(self.p, batch, heads * d)
        attend = Attend(
            made,
            self.bias,
            None,
            None,
            k_cache,
            v_cache,
            heads * d,
            (heads + kv_heads) * d,
            self.window,
            d**-0.5,
            attended,
        )
        turns = (self.turns[0].contiguous(), self.turns[1].contiguous())
        steps = (Heads(self.p, tuple(factors), made), attend)
        _run(steps, self.first.long(), capacity - 1, heads, backend, self.first, turns)
        return attended


def _run(
    steps: tuple[Instruction, ...],
    tokens: torch.Tensor,
    place: int,
    heads: int,
    backend: str | None,
    first: torch.Tensor | None = None,
    turns: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """One step of a program of these instructions."""
    where = torch.full((), place, dtype=torch.int32, device=tokens.device)
    first = torch.zeros_like(tokens, dtype=torch.int32) if first is None else first
    prepare_step(Program(steps, tokens, where, first, turns, heads, EPS, "silu"), backend)()


def _like(tensor: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=tensor.dtype, device=tensor.device)


def _fp32(tensor: torch.Tensor, *shape: int) -> torch.Tensor:
    """fp32, or fp64 beside fp64."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return torch.full(shape, torch.nan, dtype=dtype, device=tensor.device)


def _normal(
    generator: torch.Generator, dtype: torch.dtype, shape: Sequence[int], scale: float = 1.0
) -> torch.Tensor:
    return (torch.randn(*shape, generator=generator) * scale).to(dtype)


def _feed_forward(batch: int, hidden: int, width: int, dtype: torch.dtype) -> FeedForwardInputs:
    generator = torch.Generator().manual_seed(hidden)
    normal = functools.partial(_normal, generator, dtype)
    return FeedForwardInputs(
        normal((9, hidden)),
        1 + normal((hidden,), 0.2),
        normal((width, hidden), hidden**-0.5),
        normal((width, hidden), hidden**-0.5),
        normal((width,), 0.3),
        normal((hidden, width), width**-0.5),
        torch.randint(9, (batch,), generator=generator),
    )


def step_rows(batch: int, hidden: int, width: int) -> KernelCall:
    """The products of a feed-forward, by the kernel for one sequence or those for several."""
    return KernelCall(
        "step_row" if batch == 1 else "step_wide" if batch <= WIDE_BATCH else "step_block",
        f"B{batch} N{width} K{hidden}",
        functools.partial(_feed_forward, batch, hidden, width),
        lambda given, backend, out: given.run(backend, out),
        aligned=True,
    )


def _attention(
    batch: int,
    heads: int,
    kv_heads: int,
    d: int,
    rank: int,
    tokens: int,
    window: int | None,
    dtype: torch.dtype,
) -> AttentionInputs:
    generator = torch.Generator().manual_seed(d)
    normal = functools.partial(_normal, generator, dtype)
    angles = torch.randn(tokens, d // 2, generator=generator).repeat(1, 2)
    k_cache, v_cache = (normal((batch, kv_heads, tokens, d)) for _ in "kv")
    return AttentionInputs(
        normal((batch, 2 * rank)),
        normal((heads + 2 * kv_heads, rank, d), rank**-0.5),
        normal(((heads + 2 * kv_heads) * d,), 0.3),
        k_cache,
        v_cache,
        (angles.cos(), angles.sin()),
        (torch.arange(batch) * 7 % tokens).to(torch.int32),
        8 if batch == 1 else 4,
        window,
    )


def step_attention(
    batch: int, heads: int, kv_heads: int, d: int, rank: int, tokens: int, window: int | None = None
) -> KernelCall:
    """Heads and their attention, the new token after `tokens` - 1 others."""
    name = f"B{batch} H{heads} Hk{kv_heads} h{d} r{rank} T{tokens}"
    return KernelCall(
        "step_attend",
        name if window is None else f"{name} window {window}",
        functools.partial(_attention, batch, heads, kv_heads, d, rank, tokens, window),
        lambda given, backend, out: given.run(backend, out),
        aligned=True,
        takes_out=False,
    )
