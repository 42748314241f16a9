"""Inputs and independent references for the tests of the ops."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from flashsvd.kernels import HeadLayout, Projection, flash_svd_attention

CPU_BACKENDS = ("torch", "interpret")
DTYPES = (torch.float32, torch.float16)
GPU_DTYPES = (*DTYPES, torch.bfloat16)


def skip_without_interpreter(backend: str) -> None:
    """On a machine with a GPU the kernels compile there, and the interpreter is off."""
    if backend == "interpret" and torch.cuda.is_available():
        # Here, as sanitize.py takes its inputs from this module and runs without pytest.
        import pytest

        pytest.skip("the interpreter is only on where there is no GPU")


def guarded(tensor: torch.Tensor, before: int = 1, after: int = 2) -> torch.Tensor:
    """The same values inside a wider, longer buffer of NaN: reading past any row or end shows.

    `before` and `after` are the columns of NaN. As given, no row starts on 16 bytes; with 8 and 8 all rows do whose
    width is a multiple of 8.
    """
    padded = torch.full(
        (*(size + 2 for size in tensor.shape[:-1]), tensor.shape[-1] + before + after),
        float("nan"),
        dtype=tensor.dtype,
        device=tensor.device,
    )
    inner = [slice(1, 1 + size) for size in tensor.shape[:-1]]
    view = padded[(*inner, slice(before, before + tensor.shape[-1]))]
    return view.copy_(tensor)


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

    def run(self, backend: str | None) -> torch.Tensor:
        return flash_svd_attention(
            self.q,
            self.k,
            self.v,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            key_mask=self.key_mask,
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

        return replace(self, q=changed(self.q), k=changed(self.k), v=changed(self.v))

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

    def projection(ranks: tuple[int, ...] | None, heads: int) -> Projection:
        bias = (0.5 * normal(heads * case.head_dim)).to(dtype) if case.bias else None
        if ranks is None:
            return Projection(
                normal(case.batch, case.seq, heads * case.head_dim).to(dtype), None, bias, None, None
            )
        layout = HeadLayout(ranks, case.shared)
        u = torch.cat([normal(rank, case.head_dim) / rank**0.5 for rank in ranks]).to(dtype)
        p = normal(case.batch, case.seq, layout.p_width).to(dtype)
        return Projection(p, u, bias, layout, layout.table())

    return AttentionInputs(
        projection(case.q_ranks, case.heads),
        projection(case.k_ranks, case.kv_heads),
        projection(case.v_ranks, case.kv_heads),
        case.heads,
        case.kv_heads,
        case.head_dim,
        key_mask(case.mask, case.batch, case.seq, generator),
    )


def key_mask(kind: str | None, batch: int, seq: int, generator: torch.Generator) -> torch.Tensor | None:
    """Bool [B, S]; left and right padding grow with the sequence's number."""
    if kind is None:
        return None
    mask = torch.ones(batch, seq, dtype=torch.bool)
    for b in range(batch):
        padding = min(seq - 1, (b + 1) * seq // 3)
        if kind == "left":
            mask[b, :padding] = False
        elif kind == "right":
            mask[b, seq - padding :] = False
        elif kind == "random":
            mask[b] = torch.rand(seq, generator=generator) < 0.6
            mask[b, int(torch.randint(seq, (), generator=generator))] = True
        elif kind == "empty" or (kind == "one empty" and b == batch - 1):
            mask[b] = False
    return mask


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

    group = inputs.heads // inputs.kv_heads
    k, v = (heads_of(proj, inputs.kv_heads).repeat_interleave(group, 1) for proj in (inputs.k, inputs.v))
    mask = None if inputs.key_mask is None else inputs.key_mask[:, None, None, :]
    out = torch.nn.functional.scaled_dot_product_attention(
        heads_of(inputs.q, inputs.heads), k, v, attn_mask=mask
    )
    if mask is not None:
        out = torch.where(mask.any(-1, keepdim=True), out, 0.0)
    return out.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class FfnCase:
    """One call of the feed-forward op."""

    rows: int
    width: int
    rank_in: int
    rank_out: int
    activation: str = "gelu"
    bias: bool = True

    @property
    def name(self) -> str:
        bias = "" if self.bias else " no bias"
        return f"M{self.rows} D{self.width} R{self.rank_in} R{self.rank_out} {self.activation}{bias}"


FFN_CASES = (
    FfnCase(1, 64, 40, 40),
    FfnCase(17, 100, 1, 1, "relu"),
    FfnCase(63, 128, 7, 59, "gelu_tanh"),
    FfnCase(97, 97, 16, 64, "gelu", bias=False),
    FfnCase(70, 200, 59, 16, "relu", bias=False),
    FfnCase(33, 65, 240, 300, "gelu"),
    FfnCase(17, 70, 300, 7, "gelu_tanh"),
    FfnCase(5, 31, 64, 257, "gelu"),
)


def ffn_inputs(case: FfnCase, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor | None, ...]:
    """(p, u1, b1, v2), scaled so that every product has entries of about unit size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (
        normal(case.rows, case.rank_in).to(dtype),
        (normal(case.width, case.rank_in) / case.rank_in**0.5).to(dtype),
        (0.5 * normal(case.width)).to(dtype) if case.bias else None,
        (normal(case.rank_out, case.width) / case.width**0.5).to(dtype),
    )


def ffn_reference(
    p: torch.Tensor, u1: torch.Tensor, b1: torch.Tensor | None, v2: torch.Tensor, activation: str
) -> torch.Tensor:
    """fp64, with the activations written out."""
    t = p.double() @ u1.double().T
    if b1 is not None:
        t = t + b1.double()
    if activation == "relu":
        t = t * (t > 0)
    elif activation == "gelu":
        t = t * 0.5 * torch.erfc(-t / 2**0.5)
    else:
        t = t * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (t + 0.044715 * t**3)))
    return t @ v2.double().T
