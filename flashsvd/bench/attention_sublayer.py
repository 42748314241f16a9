"""An attention sublayer x -> softmax(q kᵀ) v Woᵀ from random weights, and the ways of running it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from flashsvd.bench.ops import random_tensor
from flashsvd.engines.absorb import Absorbed, absorb
from flashsvd.engines.modules import HeadLowRankLinear, LowRankLinear
from flashsvd.kernels import HeadLayout, Projection, flash_svd_attention, rank_space_attention
from flashsvd.kernels.attention.naive import Rotation
from flashsvd.kernels.rotary import rotate_heads
from flashsvd.kernels.rotary.naive import naive_rotary
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import RankPlan, rank_for_keep

_QUERIES = 512


def layer_plan(
    heads: int, head_dim: int, rank: int, rank_out: int | None, kv_heads: int | None = None
) -> RankPlan:
    """One layer's q, k, v, o. Factored whatever the rank: a bench may look above break-even. kv_heads: as many as heads
    unless given."""
    hidden, kv_heads = heads * head_dim, heads if kv_heads is None else kv_heads
    query, output = Slot("q", hidden, hidden, heads=heads), Slot("o", hidden, hidden)
    key = Slot("k", kv_heads * head_dim, hidden, heads=kv_heads)
    slots = (query, key, replace(key, name="v"), output)
    shape = ModelShape("attention", hidden, heads, kv_heads, head_dim, max_positions=2**24, layers=(slots,))
    if rank_out is None:
        rank_out = rank_for_keep(output, min(1.0, rank / query.break_even)) or output.full_rank
    keys = (rank,) * kv_heads
    return RankPlan(shape, (((rank,) * heads, keys, keys, (rank_out,)),))


@dataclass(frozen=True, eq=False)
class Sublayer:
    """x [B, S, d] and the weights of one sublayer, from factors and as the dense matrices that they stand for.

    qkv_v [N·r, d] and qkv_u [N·r, h] pack the factors of the N = H + 2·Hk heads of q, k and v; o_v [Ro, d],
    o_u [d, Ro]; qkv_w [N·h, d] and o_w [d, d] are dense. Biases qkv_b [N·h] and o_b [d] are shared. causal: whether a
    token sees no later one. rotation: cosines and sines [1, S, h] that turn q and k, or None. absorbed: the factors as
    rank space has them, where it is exact (no rotation) and made (as many heads of k and v as of q).
    """

    plan: RankPlan
    x: torch.Tensor
    qkv_v: torch.Tensor
    qkv_u: torch.Tensor
    qkv_b: torch.Tensor
    o_v: torch.Tensor
    o_u: torch.Tensor
    o_b: torch.Tensor
    qkv_w: torch.Tensor
    o_w: torch.Tensor
    tables: tuple[torch.Tensor, torch.Tensor]
    """Of the layouts of q, and of k and v."""
    absorbed: Absorbed | None
    causal: bool = False
    rotation: Rotation | None = None

    @classmethod
    def random(
        cls,
        plan: RankPlan,
        batch: int,
        seq: int,
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        *,
        causal: bool = False,
        rotary: bool = False,
    ) -> Sublayer:
        """Random weights of a size that keeps activations, and scores, near unit size."""
        hidden, heads, head_dim = plan.shape.hidden, plan.shape.heads, plan.shape.head_dim
        kv_heads = plan.shape.kv_heads
        count = heads + 2 * kv_heads
        rank, rank_out = plan.get(0, "q")[0], plan.get(0, "o")[0]
        assert rank is not None and rank_out is not None
        generator = torch.Generator(device).manual_seed(seed)

        def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return random_tensor(shape, (dtype, device), generator, scale)

        qkv_v = draw(count * rank, hidden, scale=hidden**-0.5)
        qkv_u = draw(count * rank, head_dim, scale=rank**-0.5)
        o_v, o_u = draw(rank_out, hidden, scale=hidden**-0.5), draw(hidden, rank_out, scale=rank_out**-0.5)
        blocks = qkv_u.double().unflatten(0, (count, rank)).transpose(1, 2)
        qkv_w = (blocks @ qkv_v.double().unflatten(0, (count, rank))).flatten(0, 1)
        qkv_b, o_b = draw(count * head_dim, scale=0.1), draw(hidden, scale=0.1)
        absorbed = None
        if kv_heads == heads and not rotary:
            layout = HeadLayout((rank,) * heads)
            q, k, v = (
                _factored(HeadLowRankLinear(head_dim, hidden, layout, bias=True), *parts)
                for parts in zip(qkv_u.chunk(3), qkv_v.chunk(3), qkv_b.chunk(3), strict=True)
            )
            output = _factored(LowRankLinear(hidden, hidden, rank_out, bias=True), o_u, o_v, o_b)
            absorbed = absorb(q, k, v, output, heads=heads, head_dim=head_dim)
        return cls(
            plan=plan,
            x=draw(batch, seq, hidden),
            qkv_v=qkv_v,
            qkv_u=qkv_u,
            qkv_b=qkv_b,
            o_v=o_v,
            o_u=o_u,
            o_b=o_b,
            qkv_w=qkv_w.to(dtype),
            o_w=(o_u.double() @ o_v.double()).to(dtype),
            tables=(
                HeadLayout((rank,) * heads).table().to(device),
                HeadLayout((rank,) * kv_heads).table().to(device),
            ),
            absorbed=absorbed,
            causal=causal,
            rotation=_rotation(seq, head_dim, dtype, device) if rotary else None,
        )

    def on(self, x: torch.Tensor) -> Sublayer:
        """The same weights on another input."""
        return replace(self, x=x)

    def double(self) -> Sublayer:
        """Everything in float64."""
        names = ("x", "qkv_v", "qkv_u", "qkv_b", "o_v", "o_u", "o_b", "qkv_w", "o_w")
        turn = None if self.rotation is None else (self.rotation[0].double(), self.rotation[1].double())
        return replace(self, rotation=turn, **{name: getattr(self, name).double() for name in names})

    def dense_plain(self) -> torch.Tensor:
        """The dense formula in plain torch, [B, S, d]."""
        return linear(self._attend_plain(linear(self.x, self.qkv_w, self.qkv_b)), self.o_w, self.o_b)

    def factors_plain(self) -> torch.Tensor:
        """The formula on factors in plain torch, [B, S, d]."""
        return self.project_out(self._attend_plain(self._rebuilt()))

    def dense(self) -> torch.Tensor:
        """One packed product for q, k and v, the turn of q and k in one kernel, SDPA, one product for o."""
        return linear(self._sdpa(self._turned(linear(self.x, self.qkv_w, self.qkv_b))), self.o_w, self.o_b)

    def lowrank(self) -> torch.Tensor:
        """q, k and v rebuilt in memory from one packed thin product, then SDPA and the factors of o."""
        return self.project_out(self._sdpa(self._turned(self._rebuilt())))

    def rebuild(self) -> torch.Tensor:
        """The same thin products, q, k and v rebuilt on chip."""
        shape = self.plan.shape
        columns = [count * self.rank for count in self.counts]
        q, k, v = (
            Projection(p, u, bias, HeadLayout((self.rank,) * count), table)
            for p, u, bias, count, table in zip(
                linear(self.x, self.qkv_v).split(columns, -1),
                self.qkv_u.split(columns),
                self.qkv_b.split([count * shape.head_dim for count in self.counts]),
                self.counts,
                (self.tables[0], self.tables[1], self.tables[1]),
                strict=True,
            )
        )
        attended = flash_svd_attention(
            q,
            k,
            v,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            causal=self.causal,
            rotation=self.rotation,
        )
        return self.project_out(attended)

    def rank_space(self) -> torch.Tensor:
        """One packed product into rank space, attention there, and the output projection from there."""
        absorbed = self.absorbed
        assert absorbed is not None
        packed = linear(self.x, absorbed.qkv, absorbed.qkv_bias)
        widths = [absorbed.score.p_width, absorbed.score.p_width, absorbed.value.p_width]
        q, k, v = packed.split(widths, -1)
        attended = rank_space_attention(
            q,
            k,
            v,
            score=absorbed.score,
            value=absorbed.value,
            scale=self.plan.shape.head_dim**-0.5,
            causal=self.causal,
            out=q if absorbed.score.ranks == absorbed.value.ranks else None,
        )
        # As matrices, as the engine has them: torch would copy heads that lie in q's place, and add the bias in a pass.
        rows = attended.flatten(0, 1)
        weight = absorbed.out
        if not absorbed.whole:
            rows, weight = torch.mm(rows, absorbed.out.T), self.o_u
        out = (
            torch.mm(rows, weight.T)
            if absorbed.out_bias is None
            else torch.addmm(absorbed.out_bias, rows, weight.T)
        )
        return out.unflatten(0, attended.shape[:2])

    @property
    def counts(self) -> tuple[int, int, int]:
        """Heads of q, k and v."""
        return self.plan.shape.heads, self.plan.shape.kv_heads, self.plan.shape.kv_heads

    @property
    def rank(self) -> int:
        """Rank of q, k and v per head."""
        return len(self.qkv_v) // sum(self.counts)

    def project_out(self, attended: torch.Tensor) -> torch.Tensor:
        """The output projection from factors."""
        return linear(linear(attended, self.o_v), self.o_u, self.o_b)

    def _rebuilt(self) -> torch.Tensor:
        """q, k and v side by side, [B, S, N·h]."""
        p = linear(self.x, self.qkv_v).unflatten(-1, (sum(self.counts), self.rank))
        u = self.qkv_u.unflatten(0, (sum(self.counts), self.rank))
        return torch.einsum("bsjr,jrh->bsjh", p, u).flatten(-2) + self.qkv_b

    def _turned(self, qkv: torch.Tensor) -> torch.Tensor:
        """The same with q and k turned where they lie."""
        if self.rotation is not None:
            q, k, _ = self._parts(qkv)
            rotate_heads(q, k, *self.rotation)
        return qkv

    def _parts(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return qkv.split([count * self.plan.shape.head_dim for count in self.counts], -1)

    def _heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, S, N·h] -> q [B, H, S, h], k and v [B, Hk, S, h]."""
        return tuple(
            part.unflatten(-1, (-1, self.plan.shape.head_dim)).transpose(1, 2) for part in self._parts(qkv)
        )

    def _sdpa(self, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = self._heads(qkv)
        grouped = q.shape[1] > k.shape[1]
        with _flash_backend(q):
            attended = scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=grouped)
        return attended.transpose(1, 2).flatten(2)

    def _attend_plain(self, qkv: torch.Tensor) -> torch.Tensor:
        """softmax(q kᵀ/√h) v by definition, over blocks of queries so that long sequences fit."""
        if self.rotation is not None:
            q, k, v = self._parts(qkv)
            qkv = torch.cat([naive_rotary(q, *self.rotation), naive_rotary(k, *self.rotation), v], -1)
        q, k, v = self._heads(qkv)
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
        scale = self.plan.shape.head_dim**-0.5
        parts = []
        for first, block in zip(range(0, q.shape[2], _QUERIES), q.split(_QUERIES, 2), strict=True):
            scores = block @ k.mT * scale
            if self.causal:
                ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
                scores = scores.masked_fill(ones.triu(first + 1), float("-inf"))
            parts.append(scores.softmax(-1) @ v)
        return torch.cat(parts, 2).transpose(1, 2).flatten(2)


def _factored(module: nn.Module, u: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    """An engine's module with these factors."""
    for name, tensor in (("U", u), ("V", v), ("bias", bias)):
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    return module


def _rotation(seq: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Rotation:
    """Angles of places 0 to S - 1 to the base 10000, both halves alike."""
    rates = 10000.0 ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
    # [1, S, h]
    angles = (torch.arange(seq, device=device)[:, None] * rates).repeat(1, 2)[None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _flash_backend(q: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """SDPA's flash backend for the half types on CUDA, so that no row silently runs a slower one."""
    if not q.is_cuda or q.dtype == torch.float32:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.FLASH_ATTENTION)
