"""An attention sublayer x -> softmax(q kᵀ) v Woᵀ, and the ways of running it. A new one is one entry of the table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from flashsvd.bench.contest import Contestant
from flashsvd.bench.counts import Work, dense_layer, flash_layer, lowrank_layer, rank_space_layer
from flashsvd.bench.ops import op_contestant, random_tensor
from flashsvd.engines.absorb import Absorbed, absorb
from flashsvd.engines.modules import HeadLowRankLinear, LowRankLinear
from flashsvd.kernels import HeadLayout, Projection, flash_svd_attention, rank_space_attention
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import RankPlan, rank_for_keep

_QUERIES = 512


def layer_plan(heads: int, head_dim: int, rank: int, rank_out: int | None) -> RankPlan:
    """One layer's q, k, v, o. Factored whatever the rank: a bench may look above break-even."""
    hidden = heads * head_dim
    query, output = Slot("q", hidden, hidden, heads=heads), Slot("o", hidden, hidden)
    slots = (query, replace(query, name="k"), replace(query, name="v"), output)
    shape = ModelShape("attention", hidden, heads, heads, head_dim, max_positions=2**24, layers=(slots,))
    if rank_out is None:
        rank_out = rank_for_keep(output, min(1.0, rank / query.break_even)) or output.full_rank
    return RankPlan(shape, (((rank,) * heads,) * 3 + ((rank_out,),),))


@dataclass(frozen=True, eq=False)
class Sublayer:
    """x [B, S, d] and the weights of one sublayer, from factors and as the dense matrices that they stand for.

    qkv_v [3·H·r, d] and qkv_u [3·H·r, h] pack the factors of q, k and v; o_v [Ro, d], o_u [d, Ro]; qkv_w [3·d, d]
    and o_w [d, d] are dense. Biases qkv_b [3·d] and o_b [d] are shared. absorbed: the factors as rank space has them.
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
    table: torch.Tensor
    absorbed: Absorbed

    @classmethod
    def random(
        cls, plan: RankPlan, batch: int, seq: int, dtype: torch.dtype, device: torch.device, seed: int
    ) -> Sublayer:
        """Random weights of a size that keeps activations, and scores, near unit size."""
        hidden, heads, head_dim = plan.shape.hidden, plan.shape.heads, plan.shape.head_dim
        rank, rank_out = plan.get(0, "q")[0], plan.get(0, "o")[0]
        assert rank is not None and rank_out is not None
        generator = torch.Generator(device).manual_seed(seed)

        def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return random_tensor(shape, (dtype, device), generator, scale)

        qkv_v = draw(3 * heads * rank, hidden, scale=hidden**-0.5)
        qkv_u = draw(3 * heads * rank, head_dim, scale=rank**-0.5)
        o_v, o_u = draw(rank_out, hidden, scale=hidden**-0.5), draw(hidden, rank_out, scale=rank_out**-0.5)
        blocks = qkv_u.double().unflatten(0, (3 * heads, rank)).transpose(1, 2)
        qkv_w = (blocks @ qkv_v.double().unflatten(0, (3 * heads, rank))).flatten(0, 1)
        qkv_b, o_b = draw(3 * hidden, scale=0.1), draw(hidden, scale=0.1)
        layout = HeadLayout((rank,) * heads)
        q, k, v = (
            _factored(HeadLowRankLinear(head_dim, hidden, layout, bias=True), *parts)
            for parts in zip(qkv_u.chunk(3), qkv_v.chunk(3), qkv_b.chunk(3), strict=True)
        )
        output = _factored(LowRankLinear(hidden, hidden, rank_out, bias=True), o_u, o_v, o_b)
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
            table=layout.table().to(device),
            absorbed=absorb(q, k, v, output, heads=heads, head_dim=head_dim),
        )

    def on(self, x: torch.Tensor) -> Sublayer:
        """The same weights on another input."""
        return replace(self, x=x)

    def double(self) -> Sublayer:
        """Everything in float64."""
        names = ("x", "qkv_v", "qkv_u", "qkv_b", "o_v", "o_u", "o_b", "qkv_w", "o_w")
        return replace(self, **{name: getattr(self, name).double() for name in names})

    def dense_plain(self) -> torch.Tensor:
        """The dense formula in plain torch, [B, S, d]."""
        return linear(self._attend_plain(linear(self.x, self.qkv_w, self.qkv_b)), self.o_w, self.o_b)

    def factors_plain(self) -> torch.Tensor:
        """The formula on factors in plain torch, [B, S, d]."""
        return self.project_out(self._attend_plain(self._rebuilt()))

    def dense(self) -> torch.Tensor:
        """One packed product for q, k and v, SDPA, one product for o."""
        return linear(self._sdpa(linear(self.x, self.qkv_w, self.qkv_b)), self.o_w, self.o_b)

    def lowrank(self) -> torch.Tensor:
        """q, k and v rebuilt in memory from one packed thin product, then SDPA and the factors of o."""
        return self.project_out(self._sdpa(self._rebuilt()))

    def rebuild(self) -> torch.Tensor:
        """The same thin products, q, k and v rebuilt on chip."""
        shape = self.plan.shape
        layout = HeadLayout((self.rank,) * shape.heads)
        parts = linear(self.x, self.qkv_v).chunk(3, -1)
        q, k, v = (
            Projection(p, u, bias, layout, self.table)
            for p, u, bias in zip(parts, self.qkv_u.chunk(3), self.qkv_b.chunk(3), strict=True)
        )
        return self.project_out(flash_svd_attention(q, k, v, heads=shape.heads, head_dim=shape.head_dim))

    def rank_space(self) -> torch.Tensor:
        """One packed product into rank space, attention there, and the output projection from there."""
        absorbed = self.absorbed
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
    def rank(self) -> int:
        """Rank of q, k and v per head."""
        return len(self.qkv_v) // (3 * self.plan.shape.heads)

    def project_out(self, attended: torch.Tensor) -> torch.Tensor:
        """The output projection from factors."""
        return linear(linear(attended, self.o_v), self.o_u, self.o_b)

    def _rebuilt(self) -> torch.Tensor:
        """q, k and v side by side, [B, S, 3·d]."""
        p = linear(self.x, self.qkv_v).unflatten(-1, (3 * self.plan.shape.heads, self.rank))
        u = self.qkv_u.unflatten(0, (3 * self.plan.shape.heads, self.rank))
        return torch.einsum("bsjr,jrh->bsjh", p, u).flatten(-2) + self.qkv_b

    def _heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, S, 3·d] -> q, k, v [B, H, S, h]."""
        return tuple(
            part.unflatten(-1, (self.plan.shape.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1)
        )

    def _sdpa(self, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = self._heads(qkv)
        with _flash_backend(q):
            return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def _attend_plain(self, qkv: torch.Tensor) -> torch.Tensor:
        """softmax(q kᵀ/√h) v by definition, over blocks of queries so that long sequences fit."""
        q, k, v = self._heads(qkv)
        scale = self.plan.shape.head_dim**-0.5
        parts = [(block @ k.mT * scale).softmax(-1) @ v for block in q.split(_QUERIES, 2)]
        return torch.cat(parts, 2).transpose(1, 2).flatten(2)


def _factored(module: nn.Module, u: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    """An engine's module with these factors."""
    for name, tensor in (("U", u), ("V", v), ("bias", bias)):
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    return module


def _flash_backend(q: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """SDPA's flash backend for the half types on CUDA, so that no row silently runs a slower one."""
    if not q.is_cuda or q.dtype == torch.float32:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.FLASH_ATTENTION)


@dataclass(frozen=True)
class _Entry:
    what: str
    count: Callable[[RankPlan, int, int, int, int], Work]
    run: Callable[[Sublayer], torch.Tensor]


_TABLE: Mapping[str, _Entry] = {
    "dense": _Entry(
        "packed q, k, v product, SDPA, output product",
        lambda plan, *rest: dense_layer(plan.shape, *rest),
        Sublayer.dense,
    ),
    "lowrank": _Entry("thin products, q, k, v rebuilt in memory, SDPA", lowrank_layer, Sublayer.lowrank),
    "flash-rebuild": _Entry("thin products, q, k, v rebuilt on chip", flash_layer, Sublayer.rebuild),
    "flash": _Entry("absorbed factors, attention in rank space", rank_space_layer, Sublayer.rank_space),
}


def contestants(sublayer: Sublayer) -> Mapping[str, Contestant]:
    """Every way of running the sublayer, by the name of its row; those from factors are judged against them."""
    batch, seq, _ = sublayer.x.shape
    return {
        name: op_contestant(
            entry.what,
            entry.count(sublayer.plan, 0, batch, seq, sublayer.x.element_size()),
            lambda run=entry.run: run(sublayer),  # type: ignore[misc]
            sublayer.x.device,
        )
        for name, entry in _TABLE.items()
    }
