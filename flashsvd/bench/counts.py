"""How much arithmetic and how many bytes each way of running a layer takes, on paper.

Letters, as in the kernels: B batch, S sequence, M = B·S tokens, d hidden, H heads, Hk kv heads, h head dim, r rank
per head, D feed-forward width, R1, R2 feed-forward ranks, Ro rank of the output projection, e bytes per element.
A factored linear has R columns of rank-space activation P: Σr over its heads, or its one rank.

A product [M, k]·[k, n] is 2·M·k·n FLOPs. Bytes are the least that can move: every weight is read once, and every
tensor that one product leaves for the next is written once and read once. Element-wise steps (bias, activation,
norm, residual, softmax) count as part of the product beside them and cost nothing. Embeddings, pooler and biases
are left out: the blocks' matrices and attention are what engines differ in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from flashsvd.engines.absorb import one_product
from flashsvd.errors import InputError
from flashsvd.factors import layout_ranks
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import RankPlan

_WIDE = ("up", "gate")


@dataclass(frozen=True)
class Work:
    """FLOPs, and the least bytes of weights read and of activations written and read."""

    flops: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.activation_bytes + other.activation_bytes,
        )

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes

    def rereading_weights(self, times: int) -> Work:
        """The same work with all weights read `times` times, as micro-batches do."""
        return replace(self, weight_bytes=self.weight_bytes * times)


@dataclass(frozen=True)
class _Linear:
    """One slot under a plan: weights, columns of P (0 where dense), stored rank per head (h where dense)."""

    slot: Slot
    weights: int
    p_width: int
    head_ranks: tuple[int, ...]


def dense_layer(
    shape: ModelShape, layer: int, batch: int, seq: int, itemsize: int, *, causal: bool = False
) -> Work:
    """Dense linears and attention: Σ 2·M·out·in + 4·B·S²·H·h FLOPs; with `causal` attention that leaves out what is
    masked, 2·B·S·(S + 1)·H·h of it.

    Moves e·(Σ out·in + M·(2·(q+k+v widths) + 2·H·h + 2·wide + 4·d)), wide being D (2·D where gated).

    >>> from flashsvd.models.families.bert import FAMILY
    >>> from types import SimpleNamespace
    >>> config = SimpleNamespace(**FAMILY.presets["bert-base"].config)
    >>> work = dense_layer(FAMILY.shape(config), 0, batch=32, seq=512, itemsize=2)
    >>> round(12 * work.flops / 1e12, 2)
    3.09
    """
    return lowrank_layer(RankPlan.dense(shape), layer, batch, seq, itemsize, causal=causal)


def lowrank_layer(
    plan: RankPlan, layer: int, batch: int, seq: int, itemsize: int, *, causal: bool = False
) -> Work:
    """Two products per factored linear, everything between them materialised: Σ 2·M·(in·R + Σr·out/heads) FLOPs
    for the linears and 4·B·S²·H·h for attention, as `dense_layer` also where `causal`.

    Moves what dense moves, with the factors as weights, and 2·M·R more per factored linear.
    """
    linears, tokens = _linears(plan, layer), batch * seq
    columns = sum(linear.p_width for linear in linears.values())
    columns += sum(linears[name].slot.out_features for name in (*"qkv", *_WIDE) if name in linears)
    columns += _outer(linears) + (plan.shape.heads * plan.shape.head_dim if "q" in linears else 0)
    return Work(
        flops=2 * tokens * _weights(linears)
        + _attention_flops(plan.shape, linears, batch, scored_pairs(seq, causal=causal)),
        weight_bytes=itemsize * _weights(linears),
        activation_bytes=2 * itemsize * tokens * columns,
    )


def flash_layer(
    plan: RankPlan,
    layer: int,
    batch: int,
    seq: int,
    itemsize: int,
    *,
    window: int | None = None,
    causal: bool = False,
    query_blocks: int = 1,
) -> Work:
    """FlashSVD: q, k, v rebuilt on chip from P, and the wide activation never stored.

    FLOPs are those of low rank, and 2·M·Σr·h more for k and for v with every block of queries past the first, as
    each block rebuilds all keys. With `query_blocks` 1 it is the least the algorithm needs: work that a kernel
    repeats by choice of tiles is not credited to it. With a `window`, and where `causal`, attention is 4·B·H·h FLOPs
    per pair that is scored.

    Moves e·(factors + M·(2·(R of q, k, v; the width where dense) + 2·H·h + 2·(Ro + R1 + R2) + 4·d)), of which
    2·e·M·(R1 + R2) stay on chip where `flashsvd.kernels.ffn_block` has its one kernel.
    """
    linears, tokens = _linears(plan, layer), batch * seq
    columns = sum(linear.p_width for linear in linears.values())
    columns += sum(linears[n].slot.out_features for n in "qkv" if n in linears and not linears[n].p_width)
    columns += _outer(linears) + (plan.shape.heads * plan.shape.head_dim if "q" in linears else 0)
    rebuilt = sum(
        sum(linears[n].head_ranks) * plan.shape.head_dim for n in "kv" if n in linears and linears[n].p_width
    )
    flops = 2 * tokens * (_weights(linears) + (query_blocks - 1) * rebuilt)
    return Work(
        flops=flops + _attention_flops(plan.shape, linears, batch, scored_pairs(seq, window, causal=causal)),
        weight_bytes=itemsize * _weights(linears),
        activation_bytes=2 * itemsize * tokens * columns,
    )


def rank_space_layer(
    plan: RankPlan,
    layer: int,
    batch: int,
    seq: int,
    itemsize: int,
    *,
    window: int | None = None,
    causal: bool = False,
) -> Work:
    """Attention at head dim r: q·kᵀ = Pq'·Pkᵀ with the factors of q and k folded together, those of v into o.

    Per query head i the score rank is s = min(rq, rk), rk where kv heads are shared; a dense head counts as rank
    h. FLOPs 2·M·d·(Σs + Σ over kv heads of (s + rv)) + 2·B·S²·Σ(s + rv) + 2·M·Ro·(Σrv + d); a dense o, and one whose
    two products become one (`flashsvd.engines.absorb.one_product`), costs 2·M·Σrv·d. Feed-forward is that of
    `flash_layer`. Holds without rotary embeddings.

    Raises:
        InputError: q, k or v are factored as whole matrices, where heads have no rank of their own.
    """
    linears, tokens, shape = _linears(plan, layer), batch * seq, plan.shape
    if not per_head_or_dense(plan, layer):
        raise InputError("rank-space attention needs q, k, v factored per head, got whole matrices")
    ranks = {name: linears[name].head_ranks for name in "qkv"}
    group = shape.heads // shape.kv_heads
    scores = [
        min(rq, ranks["k"][head // group]) if group == 1 else ranks["k"][head // group]
        for head, rq in enumerate(ranks["q"])
    ]
    values = [ranks["v"][head // group] for head in range(shape.heads)]
    projected = sum(scores) + sum(scores[::group]) + sum(ranks["v"])
    output = linears["o"]
    hidden = output.slot.out_features
    through = output.p_width
    if through and one_product(sum(values), through, hidden):
        through = 0
    folded = through * (sum(values) + hidden) if through else sum(values) * hidden
    weights = linears["q"].slot.in_features * projected + folded
    pairs = scored_pairs(seq, window, causal=causal)
    attention = Work(
        flops=2 * tokens * weights + 2 * batch * pairs * (sum(scores) + sum(values)),
        weight_bytes=itemsize * weights,
        activation_bytes=2 * itemsize * tokens * (projected + sum(values) + through + hidden),
    )
    return attention + _streamed_feed_forward(linears, tokens, itemsize)


def per_head_or_dense(plan: RankPlan, layer: int) -> bool:
    """Whether every head of q, k and v has a rank of its own, so that `rank_space_layer` holds."""
    linears = _linears(plan, layer)
    return not any(linears[name].p_width and not linears[name].slot.per_head for name in "qkv")


def ffn_work(rows: int, width: int, rank_in: int, rank_out: int, itemsize: int, *, streamed: bool) -> Work:
    """act(P·U1ᵀ + b)·V2ᵀ for P [M, R1] and D = width: 2·M·D·(R1 + R2) FLOPs.

    Moves e·((M + D)·(R1 + R2)), and e·2·M·D more unless the wide activation is streamed.

    >>> ffn_work(16384, 3072, 240, 240, 2, streamed=True)
    Work(flops=48318382080, weight_bytes=2949120, activation_bytes=15728640)
    """
    ranks = rank_in + rank_out
    columns = ranks + (0 if streamed else 2 * width)
    return Work(2 * rows * width * ranks, itemsize * width * ranks, itemsize * rows * columns)


def scored_pairs(seq: int, window: int | None = None, *, causal: bool = False) -> int:
    """Pairs of a query and a key that attention scores: S², or those at most `window` apart; where `causal`, those of
    them whose key is no later than the query.

    >>> scored_pairs(5), scored_pairs(5, window=1), scored_pairs(5, window=9)
    (25, 13, 25)
    >>> scored_pairs(5, causal=True), scored_pairs(5, window=1, causal=True)
    (15, 9)
    """
    apart = seq - 1 if window is None else min(window, seq - 1)
    both = seq * (2 * apart + 1) - apart * (apart + 1)
    return (both + seq) // 2 if causal else both


def _streamed_feed_forward(linears: dict[str, _Linear], tokens: int, itemsize: int) -> Work:
    kept = {name: linear for name, linear in linears.items() if name in (*_WIDE, "down")}
    if not kept:
        return Work()
    columns = sum(linear.p_width for linear in kept.values()) + kept["down"].slot.out_features
    weights = _weights(kept)
    return Work(2 * tokens * weights, itemsize * weights, 2 * itemsize * tokens * columns)


def _linears(plan: RankPlan, layer: int) -> dict[str, _Linear]:
    found = {}
    for slot in plan.shape.layers[layer]:
        stored = layout_ranks(slot, plan.get(layer, slot.name))
        if stored is None:
            heads = slot.heads or 1
            per_head = (slot.out_features // heads,) * heads
            found[slot.name] = _Linear(slot, slot.out_features * slot.in_features, 0, per_head)
            continue
        shared = slot.heads > 0 and slot.units == 1
        p_width = stored[0] if shared else sum(stored)
        second = sum(stored) * slot.out_features // len(stored)
        found[slot.name] = _Linear(slot, p_width * slot.in_features + second, p_width, stored)
    return found


def _weights(linears: dict[str, _Linear]) -> int:
    return sum(linear.weights for linear in linears.values())


def _outer(linears: dict[str, _Linear]) -> int:
    """Half of what goes between sublayers: x is read by each of the two, and each writes its result."""
    return sum(linears[name].slot.out_features for name in ("o", "down") if name in linears)


def _attention_flops(shape: ModelShape, linears: dict[str, _Linear], batch: int, pairs: int) -> int:
    return 4 * batch * pairs * shape.heads * shape.head_dim if "q" in linears else 0
