"""Inputs and an independent reference for the tests of rank-space attention."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from kernel_cases import key_mask

from flashsvd.kernels import HeadLayout, rank_space_attention
from flashsvd.kernels.gate import assert_close

GUARD = 3
"""Columns of NaN between q, k and v where they are packed with guards."""


@dataclass(frozen=True)
class Case:
    """One call; ranks are per kv head."""

    name: str
    seq: int
    score: tuple[int, ...]
    value: tuple[int, ...]
    group: int = 1
    mask: str | None = None
    batch: int = 2
    window: int | None = None
    causal: bool = False
    past: int = 0
    """Keys before the first query; above 0 only where causal."""


CASES = (
    Case("one token", 1, (40, 40), (40, 40)),
    Case("one token, one rank", 1, (1, 1), (1, 1), mask="right"),
    Case("one rank", 17, (1, 1), (1, 1), mask="left"),
    Case("rank below a tile", 17, (7, 7), (7, 7), mask="right"),
    Case("rank of a tile", 63, (16, 16), (16, 16)),
    Case("rank 40", 97, (40, 40), (40, 40), mask="right"),
    Case("rank 59 and 64", 63, (59, 59), (64, 64), mask="left"),
    Case("a whole tile of queries and keys", 128, (32, 32), (32, 32), batch=1),
    Case("more than one tile of queries", 131, (16,), (40,), batch=1),
    Case("ranks differ by head and side", 97, (7, 40, 16), (59, 1, 64), mask="random"),
    Case("ranks of even number", 63, (6, 10), (10, 6), mask="random"),
    Case("ranks of eights", 63, (8, 16), (16, 8)),
    Case("groups", 63, (7, 40), (16, 59), group=3, mask="left"),
    Case("one kv head", 17, (40,), (8,), group=4),
    Case("rank loop", 33, (200, 130), (40, 7), mask="left"),
    Case("large values", 17, (40,), (300,), mask="right"),
    Case("a window", 131, (16, 8), (8, 16), window=5),
    Case("a window of a tile, and padding", 97, (40,), (24,), group=2, mask="random", window=64),
    Case("a window of one", 33, (8,), (8,), mask="left", window=0),
    Case("a window wider than the sequence", 17, (7,), (7,), mask="right", window=99),
    Case("a sequence with no key", 63, (40, 7), (40, 7), mask="one empty"),
    Case("no key anywhere", 17, (40, 7), (7, 16), mask="empty"),
)
CAUSAL_CASES = (
    Case("causal, one token", 1, (40, 40), (40, 40), causal=True),
    Case("causal, one token after others", 1, (40, 7), (16, 40), causal=True, past=70, mask="left"),
    Case("causal, odd ranks", 63, (7, 59), (59, 1), causal=True, mask="random"),
    Case("causal, several tiles", 131, (16,), (40,), batch=1, causal=True),
    Case("causal, several tiles after others", 97, (16,), (24,), mask="right", causal=True, past=100),
    Case("causal, whole tiles", 128, (32,), (32,), batch=1, causal=True, past=64),
    Case("causal, groups", 63, (7, 40), (16, 59), group=3, mask="left", causal=True, past=3),
    Case("causal, rank loop", 33, (200, 130), (40, 7), causal=True, past=40),
    Case("causal, a window", 131, (16, 8), (8, 16), window=40, causal=True, past=30, mask="random", batch=1),
    Case("causal, a window of one", 33, (8,), (8,), window=0, causal=True),
    Case("causal, a sequence with no key", 33, (40, 7), (40, 7), mask="one empty", causal=True, past=9),
)
LONG = Case("long", 1025, (40, 59), (59, 64), mask="random", batch=1)
ON_GPU = (
    *CASES,
    *CAUSAL_CASES,
    LONG,
    Case("gpt-2", 520, (40,) * 3, (64,) * 3, causal=True),
    Case("gpt-2 after others", 300, (40,) * 3, (40,) * 3, causal=True, past=212, mask="left"),
    Case("long, no mask", 1025, (40,) * 3, (40,) * 3),
    Case("whole tiles", 512, (32,) * 3, (64,) * 3),
    Case("whole tiles, one pass", 256, (128, 128), (128, 128), mask="right"),
    Case("ranks of fours", 257, (4, 12), (12, 4), mask="right"),
)


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    score: HeadLayout
    value: HeadLayout
    group: int
    scale: float
    mask: torch.Tensor | None
    window: int | None = None
    causal: bool = False

    def run(self, backend: str | None, out: torch.Tensor | None = None) -> torch.Tensor:
        return rank_space_attention(
            self.q,
            self.k,
            self.v,
            score=self.score,
            value=self.value,
            kv_group=self.group,
            scale=self.scale,
            key_mask=self.mask,
            window=self.window,
            causal=self.causal,
            out=out,
            backend=backend,
        )

    def packed(self, guard: int = GUARD) -> Inputs:
        """The same call on column slices of one tensor, NaN between them and around every sequence."""
        widths = [tensor.shape[-1] for tensor in (self.q, self.k, self.v)]
        batch, keys = self.k.shape[:2]
        whole = torch.full((batch + 2, keys + 2, sum(widths) + 4 * guard), torch.nan, dtype=self.q.dtype)
        whole = whole.to(self.q.device)[1 : 1 + batch, 1 : 1 + keys]
        parts, column = [], guard
        for tensor, width in zip((self.q, self.k, self.v), widths, strict=True):
            parts.append(whole[:, : tensor.shape[1], column : column + width].copy_(tensor))
            column += width + guard
        return replace(self, q=parts[0], k=parts[1], v=parts[2])

    def to(self, device: str) -> Inputs:
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, q=self.q.to(device), k=self.k.to(device), v=self.v.to(device), mask=mask)


def inputs_of(case: Case, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """Random inputs whose scores are of about unit size, at a scale that is neither 1 nor 1/sqrt(rank)."""
    generator = torch.Generator().manual_seed(seed)

    keys = case.past + case.seq

    def normal(width: int, tokens: int) -> torch.Tensor:
        return torch.randn(case.batch, tokens, width, generator=generator, dtype=torch.float64).to(dtype)

    score, value = HeadLayout(case.score), HeadLayout(case.value)
    return Inputs(
        normal(case.group * score.p_width, case.seq),
        normal(score.p_width, keys),
        normal(value.p_width, keys),
        score,
        value,
        case.group,
        1.25 / score.max_rank**0.5,
        key_mask(case.mask, case.batch, keys, generator),
        case.window,
        case.causal,
    )


def reference(inputs: Inputs) -> torch.Tensor:
    """fp64: torch's own attention, head by head, with the columns counted here."""

    def heads(tensor: torch.Tensor, ranks: list[int]) -> list[torch.Tensor]:
        ends = itertools.accumulate(ranks)
        return [tensor.double()[..., end - rank : end] for end, rank in zip(ends, ranks, strict=True)]

    def repeated(items: list[Any]) -> list[Any]:
        return [item for item in items for _ in range(inputs.group)]

    score, value = list(inputs.score.ranks), list(inputs.value.ranks)
    mask = None if inputs.mask is None else inputs.mask[:, None, :]
    seq, keys = inputs.q.shape[1], inputs.k.shape[1]
    if inputs.window is not None:
        place, key = torch.arange(keys - seq, keys), torch.arange(keys)
        near = (key >= place[:, None] - inputs.window) & (key <= place[:, None] + inputs.window)
        mask = near[None] if mask is None else mask & near
    if inputs.causal:
        seen = torch.ones(1, seq, keys, dtype=torch.bool).tril(keys - seq)
        mask = seen if mask is None else mask & seen
    out = torch.cat(
        [
            torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=inputs.scale)
            for q, k, v in zip(
                heads(inputs.q, repeated(score)),
                repeated(heads(inputs.k, score)),
                repeated(heads(inputs.v, value)),
                strict=True,
            )
        ],
        dim=-1,
    )
    return out if mask is None else torch.where(mask.any(-1, keepdim=True), out, 0.0)


def expect(inputs: Inputs, out: torch.Tensor, name: str = "out") -> None:
    """`out` passes the gate for these inputs; they are on the CPU and not yet overwritten."""
    assert_close(out, reference(inputs), inputs.run("naive"), name)
