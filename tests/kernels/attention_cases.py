"""Inputs and an independent reference for the tests of attention on factors."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from kernel_cases import key_mask

from flashsvd.kernels import HeadLayout, Projection, flash_svd_attention


@dataclass(frozen=True)
class AttentionCase:
    """One call of the attention op; ranks are per head, None where the projection is dense."""

    name: str
    seq: int
    head_dim: int
    q_ranks: tuple[int, ...] | None
    k_ranks: tuple[int, ...] | None
    v_ranks: tuple[int, ...] | None
    heads: int = 2
    kv_heads: int = 2
    shared: bool = False
    mask: str | None = None
    bias: bool = True
    batch: int = 2
    past: int = 0
    """Keys before the first query; above 0 only where causal."""
    causal: bool = False
    window: int | None = None
    turned: Literal["no", "one", "own"] = "no"
    """Rotary positions: the same for every sequence, or its own."""


def same(
    name: str, seq: int, head_dim: int, ranks: tuple[int, ...] | None, **others: object
) -> AttentionCase:
    """A case in which q, k and v have the same ranks."""
    return replace(AttentionCase(name, seq, head_dim, ranks, ranks, ranks), **others)


CASES = (
    same("one token", 1, 64, (40, 40)),
    same("one token, one rank", 1, 32, (1, 1), bias=False),
    same("odd length, one rank", 17, 32, (1, 1), mask="left"),
    same("rank below a tile", 17, 64, (7, 7), mask="right"),
    same("rank of a tile", 63, 64, (16, 16), mask="random"),
    same("rank 40", 97, 64, (40, 40), mask="right"),
    same("rank 59, head dim 80", 63, 80, (59, 59), bias=False),
    same("rank 64, head dim 128", 63, 128, (64, 64), mask="left"),
    same("head dim 96", 17, 96, (16, 16)),
    same("ranks differ by head", 97, 32, (7, 40), mask="random"),
    AttentionCase("own ranks for q, k, v", 63, 64, (16, 16), (40, 7), (59, 1), mask="random"),
    AttentionCase("q dense", 17, 64, None, (40, 7), (16, 16)),
    AttentionCase("k and v dense", 63, 32, (7, 16), None, None, mask="right"),
    same("all dense", 97, 64, None, mask="left"),
    same("all dense, no bias", 17, 80, None, bias=False),
    same("whole matrix", 63, 64, (40, 40), shared=True, mask="random"),
    same("whole matrix, rank loop", 63, 64, (100, 100), shared=True, mask="right"),
    same("per head, rank loop", 17, 128, (129, 70), mask="left"),
    AttentionCase("groups", 63, 32, (7, 16, 40, 1), (16, 7), (40, 59), 4, 2, mask="random"),
    AttentionCase("groups, dense keys", 17, 64, (7, 16, 40, 1), None, (16,), 4, 1, mask="right"),
    same("a sequence with no key", 63, 64, (40, 7), mask="one empty"),
    same("no key anywhere", 17, 64, (40, 7), mask="empty"),
)
LONG = same("long", 1025, 64, (40, 59), mask="random", batch=1)


def grouped(
    name: str, group: int, kv_heads: int, seq: int, head_dim: int, *ranks: int, **others: object
) -> AttentionCase:
    """A causal case in which `ranks` are given to heads in turn; no ranks: all dense."""

    def of(heads: int) -> tuple[int, ...] | None:
        return tuple(ranks[head % len(ranks)] for head in range(heads)) if ranks else None

    heads = group * kv_heads
    q, k = of(heads), of(kv_heads)
    return replace(AttentionCase(name, seq, head_dim, q, k, k, heads, kv_heads, causal=True), **others)


CAUSAL_CASES = (
    grouped("one token", 1, 2, 1, 32, 7, 40),
    grouped("one token after others", 2, 2, 1, 32, 7, 40, past=70, turned="one"),
    grouped("several tiles", 1, 2, 131, 64, 40, mask="right", batch=1),
    grouped("several tiles after others", 1, 1, 97, 32, 16, past=100, mask="left", turned="own"),
    grouped("turned, odd ranks", 1, 2, 63, 80, 7, 59, mask="random", turned="one"),
    grouped("turned, rank loop", 1, 1, 63, 64, 100, turned="one", bias=False),
    grouped("turned, whole matrix", 2, 2, 63, 64, 40, shared=True, past=5, turned="own"),
    grouped("turned, dense", 1, 2, 63, 64, past=3, mask="left", turned="one"),
    grouped("turned, dense groups", 4, 1, 63, 32, turned="own", batch=1),
    AttentionCase("turned, own ranks for q, k, v", 33, 64, None, (40, 7), (59, 1), causal=True, turned="one"),
    AttentionCase("turned, k dense", 33, 64, (16, 7), None, (59, 1), 2, 2, causal=True, turned="one"),
    same("turned, every key seen", 65, 32, (16, 7), mask="random", turned="own"),
    grouped("groups of 2", 2, 2, 35, 32, 16, 7, mask="random", turned="one"),
    grouped("groups of 3, every key seen", 3, 1, 35, 32, 16, 7, mask="random", causal=False),
    grouped("groups of 7", 7, 1, 21, 32, 16, 40, past=33, mask="left", turned="one"),
    grouped("groups of 8", 8, 1, 18, 64, 24, past=9, turned="one", bias=False, batch=1),
    grouped("groups of 18", 18, 1, 9, 32, 8, turned="one", batch=1),
    grouped("groups of 20, one token", 20, 1, 1, 32, 8, past=16, batch=1),
    grouped("a window", 1, 2, 131, 32, 16, 7, mask="random", window=40, batch=1),
    grouped("a window of one", 2, 1, 33, 32, 16, window=0, turned="one"),
    grouped("a window in groups, after others", 7, 1, 10, 32, 16, window=35, past=90, turned="one"),
    grouped("a window on all sides", 1, 1, 131, 32, 16, causal=False, window=33, mask="left", batch=1),
    grouped("a window as long as the keys", 1, 1, 33, 32, 16, window=32),
    grouped("padded queries", 2, 1, 63, 32, 16, past=4, mask="left", turned="own", batch=3),
    grouped("a sequence with no key", 7, 1, 9, 32, 16, mask="one empty", turned="one"),
)
"""Decoders': a query sees what is not behind it, heads share keys, q and k are turned by their places."""
LONG_CAUSAL = grouped("long", 4, 1, 700, 64, 40, 59, past=325, mask="random", turned="one", batch=1)


@dataclass(frozen=True)
class AttentionInputs:
    """The arguments of one call."""

    q: Projection
    k: Projection
    v: Projection
    heads: int
    kv_heads: int
    head_dim: int
    key_mask: torch.Tensor | None
    causal: bool = False
    window: int | None = None
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None

    def run(self, backend: str | None) -> torch.Tensor:
        return flash_svd_attention(
            self.q,
            self.k,
            self.v,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            key_mask=self.key_mask,
            causal=self.causal,
            window=self.window,
            rotation=self.rotation,
            backend=backend,
        )

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> AttentionInputs:
        """The same call with `change` applied to every floating-point tensor."""

        def changed(proj: Projection) -> Projection:
            return proj._replace(
                p=change(proj.p),
                u=None if proj.u is None else change(proj.u),
                bias=None if proj.bias is None else change(proj.bias),
            )

        turn = self.rotation
        rotation = None if turn is None else (change(turn[0]), change(turn[1]))
        return replace(self, q=changed(self.q), k=changed(self.k), v=changed(self.v), rotation=rotation)

    def to(self, device: str) -> AttentionInputs:
        def moved(proj: Projection) -> Projection:
            return proj._replace(table=None if proj.layout is None else proj.layout.table().to(device))

        mask = None if self.key_mask is None else self.key_mask.to(device)
        there = self.map(lambda tensor: tensor.to(device))
        return replace(there, q=moved(there.q), k=moved(there.k), v=moved(there.v), key_mask=mask)


def attention_inputs(case: AttentionCase, dtype: torch.dtype, seed: int = 0) -> AttentionInputs:
    """Random inputs whose heads have entries of about unit size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keys = case.past + case.seq

    def projection(ranks: tuple[int, ...] | None, heads: int, seq: int) -> Projection:
        bias = (0.5 * normal(heads * case.head_dim)).to(dtype) if case.bias else None
        if ranks is None:
            return Projection(
                normal(case.batch, seq, heads * case.head_dim).to(dtype), None, bias, None, None
            )
        layout = HeadLayout(ranks, case.shared)
        u = torch.cat([normal(rank, case.head_dim) / rank**0.5 for rank in ranks]).to(dtype)
        p = normal(case.batch, seq, layout.p_width).to(dtype)
        return Projection(p, u, bias, layout, layout.table())

    return AttentionInputs(
        projection(case.q_ranks, case.heads, case.seq),
        projection(case.k_ranks, case.kv_heads, keys),
        projection(case.v_ranks, case.kv_heads, keys),
        case.heads,
        case.kv_heads,
        case.head_dim,
        key_mask(case.mask, case.batch, keys, generator),
        case.causal,
        case.window,
        None if case.turned == "no" else rotation(case, keys, generator, dtype),
    )


def rotation(
    case: AttentionCase, keys: int, generator: torch.Generator, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of any angles, both halves alike."""
    shape = (case.batch if case.turned == "own" else 1, keys, case.head_dim // 2)
    angles = 500 * torch.rand(shape, generator=generator, dtype=torch.float64).repeat(1, 1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def attention_reference(inputs: AttentionInputs) -> torch.Tensor:
    """fp64: whole q, k, v rebuilt from the packed factors, then torch's own attention."""

    def heads_of(proj: Projection, count: int) -> torch.Tensor:
        p = proj.p.double()
        if proj.u is None:
            flat = p
        else:
            ranks = proj.layout.ranks
            ends = list(itertools.accumulate(ranks))
            flat = torch.cat(
                [
                    (p if proj.layout.shared else p[..., end - rank : end])
                    @ proj.u[end - rank : end].double()
                    for rank, end in zip(ranks, ends, strict=True)
                ],
                dim=-1,
            )
        if proj.bias is not None:
            flat = flat + proj.bias.double()
        return flat.unflatten(-1, (count, inputs.head_dim)).transpose(1, 2)

    def turned(heads: torch.Tensor) -> torch.Tensor:
        """As complex numbers, pairs of columns that lie half a head apart."""
        if inputs.rotation is None:
            return heads
        half, seq = inputs.head_dim // 2, heads.shape[2]
        turn = torch.complex(*(part[:, None, -seq:, :half].double() for part in inputs.rotation))
        pairs = torch.complex(heads[..., :half], heads[..., half:]) * turn
        return torch.cat([pairs.real, pairs.imag], -1)

    group = inputs.heads // inputs.kv_heads
    q, k, v = (
        heads_of(proj, count)
        for proj, count in (
            (inputs.q, inputs.heads),
            (inputs.k, inputs.kv_heads),
            (inputs.v, inputs.kv_heads),
        )
    )
    q, k = turned(q), turned(k)
    k, v = (part.repeat_interleave(group, 1) for part in (k, v))
    seq, keys = q.shape[2], k.shape[2]
    mask = torch.ones(seq, keys, dtype=torch.bool).tril(keys - seq if inputs.causal else keys)
    if inputs.window is not None:
        mask = mask.triu(keys - seq - inputs.window).tril(keys - seq + inputs.window)
    mask = mask.expand(len(q), 1, seq, keys)
    if inputs.key_mask is not None:
        mask = mask & inputs.key_mask[:, None, None, :]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out = torch.where(mask.any(-1, keepdim=True), out, 0.0)
    return out.transpose(1, 2).flatten(2)
