"""Every operation of a model on paper: FLOPs, bytes, and the least time it can take under two ceilings. No torch.

Letters and rules are those of `flashsvd.bench.counts`, which counts whole layers; the operations of a layer here sum to
it exactly. A product reads its weights once, and each tensor that one product leaves for the next is written once and
read once. q, k and v read one input, and so do up and gate: each group is one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import RankPlan

Engine = Literal["dense", "lowrank", "flash"]
Bound = Literal["memory", "compute"]

QKV, ATTENTION, OUTPUT, UP, DOWN, FEED_FORWARD, HEAD = (
    "q, k, v",
    "attention",
    "output",
    "up",
    "down",
    "feed-forward",
    "head",
)
_WIDE = ("up", "gate")
_WHOLE_FACTOR = 1.4
"""As `flashsvd.engines.absorb.WHOLE_FACTOR`, which lives beside torch."""


@dataclass(frozen=True)
class Op:
    """One product, or products that share an input, or attention. layer: counted from 0, -1 for the head.

    covers: the dense operations that it stands for; several where a kernel fuses them.
    """

    layer: int
    name: str
    flops: int
    weight_bytes: int
    activation_bytes: int
    covers: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True)
class Ceiling:
    """What a machine can do at most: a rate in FLOP/s and one in bytes/s, and where they come from."""

    name: str
    flops_s: float
    bytes_s: float
    source: Literal["DATA SHEET", "MEASURED"]
    detail: str = ""

    @property
    def ridge(self) -> float:
        """FLOP per byte at which the two limits meet."""
        return self.flops_s / self.bytes_s

    def attainable(self, intensity: float) -> float:
        """FLOP/s at most at an arithmetic intensity."""
        return min(self.flops_s, intensity * self.bytes_s)

    def seconds(self, flops: int, count: int) -> float:
        """The least time that takes: the longer of computing and moving."""
        return max(flops / self.flops_s, count / self.bytes_s)


@dataclass(frozen=True)
class Total:
    """The same operation of all layers, or a whole model. seconds: summed over its products, each at its own limit."""

    name: str
    covers: tuple[str, ...]
    layers: int
    flops: int
    bytes: int
    seconds: float
    memory_seconds: float

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes

    @property
    def bound(self) -> Bound:
        """What takes most of its least time."""
        return "memory" if self.memory_seconds > self.seconds / 2 else "compute"

    @property
    def memory_share(self) -> float:
        """Share of the least time that goes to products bound by memory."""
        return self.memory_seconds / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Setting:
    """What a forward is over. seq: tokens of each sequence, or those behind the one token of a step.

    causal: attention scores no later key. absorbing: the flash engine attends in rank space where q, k, v are factored
    per head. window: of a layer, how far a query sees, None for all. vocabulary: of the head that gives the next
    token's logits; None where it is not counted.
    """

    batch: int
    seq: int
    itemsize: int
    causal: bool = False
    absorbing: bool = False
    window: Callable[[int], int | None] | None = None
    vocabulary: int | None = None


def forward_ops(plan: RankPlan, engine: Engine, setting: Setting) -> list[Op]:
    """The operations of a forward over [batch, seq] tokens, in order.

    dense leaves the plan aside. lowrank runs two products for each factored linear, with everything between them
    stored. flash rebuilds q, k and v on chip, or attends in rank space, and never stores the wide activation.
    """
    if engine == "dense":
        plan = RankPlan.dense(plan.shape)
    ops: list[Op] = []
    for layer in range(len(plan.shape.layers)):
        ops += (_flash_layer if engine == "flash" else _stored_layer)(plan, layer, setting)
    return ops + _head(plan.shape, setting)


def step_ops(plan: RankPlan, engine: Engine, setting: Setting) -> list[Op]:
    """The operations of one more token of every sequence with `seq` tokens behind it.

    Moved are every weight once and the keys and values of the cache; a token's hidden states are left out, thousands
    of times less. lowrank and flash count alike: both keep dense keys and values.
    """
    if engine == "dense":
        plan = RankPlan.dense(plan.shape)
    shape, ops = plan.shape, []
    for layer in range(len(shape.layers)):
        window = setting.window(layer) if setting.window else None
        keys = setting.seq if window is None else min(setting.seq, window + 1)
        for name, linears in _groups(_linears(plan, layer)):
            if name == ATTENTION:
                ops.append(
                    Op(
                        layer,
                        name,
                        4 * setting.batch * keys * shape.heads * shape.head_dim,
                        0,
                        2 * setting.itemsize * setting.batch * keys * shape.kv_heads * shape.head_dim,
                        (name,),
                    )
                )
                continue
            for weights in (sum(one.first for one in linears), sum(one.second for one in linears)):
                if weights:
                    ops.append(
                        Op(layer, name, 2 * setting.batch * weights, setting.itemsize * weights, 0, (name,))
                    )
    return ops + _head(shape, setting)


def totals(ops: Iterable[Op], ceiling: Ceiling) -> list[Total]:
    """Operations of one name over all layers, in the order of a layer."""
    named: dict[str, list[Op]] = {}
    for op in ops:
        named.setdefault(op.name, []).append(op)
    return [_total(name, members[0].covers, members, ceiling) for name, members in named.items()]


def whole(ops: Sequence[Op], ceiling: Ceiling) -> Total:
    """All operations of a model one after another."""
    return _total("whole model", (), ops, ceiling)


def _total(name: str, covers: tuple[str, ...], ops: Sequence[Op], ceiling: Ceiling) -> Total:
    seconds = [ceiling.seconds(op.flops, op.bytes) for op in ops]
    by_memory = [
        time
        for op, time in zip(ops, seconds, strict=True)
        if op.bytes / ceiling.bytes_s > op.flops / ceiling.flops_s
    ]
    return Total(
        name=name,
        covers=covers,
        layers=len({op.layer for op in ops}),
        flops=sum(op.flops for op in ops),
        bytes=sum(op.bytes for op in ops),
        seconds=sum(seconds),
        memory_seconds=sum(by_memory),
    )


# One layer


@dataclass(frozen=True)
class _Linear:
    """One slot under a plan. first, second: weights of its two products, all in first where it stays dense; width:
    columns of the rank-space activation between them, 0 where dense; ranks: stored per head, head dim where dense."""

    slot: Slot
    first: int
    second: int
    width: int
    ranks: tuple[int, ...]

    @property
    def weights(self) -> int:
        return self.first + self.second

    @property
    def out(self) -> int:
        return self.slot.out_features

    @property
    def left(self) -> int:
        """Columns that the first product writes."""
        return self.width or self.out


def _linears(plan: RankPlan, layer: int) -> dict[str, _Linear]:
    found = {}
    for slot in plan.shape.layers[layer]:
        ranks = plan.get(layer, slot.name)
        if all(rank is None for rank in ranks):
            heads = slot.heads or 1
            dense = slot.out_features * slot.in_features
            found[slot.name] = _Linear(slot, dense, 0, 0, (slot.out_features // heads,) * heads)
            continue
        # A dense head among low-rank ones is stored as itself times an identity.
        stored = tuple(slot.unit_out if rank is None else rank for rank in ranks)
        shared = slot.heads > 0 and slot.units == 1
        if shared:
            stored *= slot.heads
        width = stored[0] if shared else sum(stored)
        second = sum(stored) * slot.out_features // len(stored)
        found[slot.name] = _Linear(slot, width * slot.in_features, second, width, stored)
    return found


def _groups(linears: dict[str, _Linear]) -> list[tuple[str, list[_Linear]]]:
    """The operations of a layer in order; attention has no linear."""
    groups = (
        (QKV, tuple("qkv")),
        (ATTENTION, ()),
        (OUTPUT, ("o",)),
        (UP, _WIDE),
        (DOWN, ("down",)),
    )
    found = [(name, [linears[slot] for slot in slots if slot in linears]) for name, slots in groups]
    return [(name, members) for name, members in found if members or (name == ATTENTION and "q" in linears)]


def _products(
    layer: int,
    name: str,
    linears: Sequence[_Linear],
    tokens: int,
    itemsize: int,
    columns_in: int,
    covers: tuple[str, ...] | None = None,
) -> list[Op]:
    """The first products of linears that read one input of `columns_in` columns, and their second ones."""
    covers = covers or (name,)
    factored = [one for one in linears if one.width]
    ops = [
        Op(
            layer,
            name,
            2 * tokens * sum(one.first for one in linears),
            itemsize * sum(one.first for one in linears),
            itemsize * tokens * (columns_in + sum(one.left for one in linears)),
            covers,
        )
    ]
    if factored:
        ops.append(
            Op(
                layer,
                name,
                2 * tokens * sum(one.second for one in factored),
                itemsize * sum(one.second for one in factored),
                itemsize * tokens * sum(one.width + one.out for one in factored),
                covers,
            )
        )
    return ops


def _stored_layer(plan: RankPlan, layer: int, setting: Setting) -> list[Op]:
    """Dense and low-rank: everything between two products is stored."""
    shape, linears, itemsize = plan.shape, _linears(plan, layer), setting.itemsize
    tokens, ops = setting.batch * setting.seq, []
    wide = sum(linears[name].out for name in _WIDE if name in linears)
    columns = {OUTPUT: shape.heads * shape.head_dim, DOWN: wide}
    for name, members in _groups(linears):
        if name == ATTENTION:
            read = sum(linears[slot].out for slot in "qkv")
            ops.append(_attention(shape, layer, setting, read, _pairs(setting, None)))
        else:
            hidden = members[0].slot.in_features
            ops += _products(layer, name, members, tokens, itemsize, columns.get(name, hidden))
    return ops


def _attention(shape: ModelShape, layer: int, setting: Setting, columns_read: int, pairs: int) -> Op:
    width, tokens = shape.heads * shape.head_dim, setting.batch * setting.seq
    return Op(
        layer,
        ATTENTION,
        4 * setting.batch * pairs * width,
        0,
        setting.itemsize * tokens * (columns_read + width),
        (ATTENTION,),
    )


def _flash_layer(plan: RankPlan, layer: int, setting: Setting) -> list[Op]:
    linears = _linears(plan, layer)
    ops: list[Op] = []
    if "q" in linears:
        per_head = not any(linears[name].width and not linears[name].slot.per_head for name in "qkv")
        attention = _rank_space if setting.absorbing and per_head else _rebuilding
        ops += attention(plan.shape, layer, linears, setting)
    return ops + _streamed_feed_forward(layer, linears, setting)


def _rebuilding(shape: ModelShape, layer: int, linears: dict[str, _Linear], setting: Setting) -> list[Op]:
    """The second products of q, k and v run within attention: what they make is never stored."""
    tokens, itemsize = setting.batch * setting.seq, setting.itemsize
    qkv = [linears[name] for name in "qkv"]
    rebuilt = sum(one.second for one in qkv)
    scores = _attention(shape, layer, setting, sum(one.left for one in qkv), _pairs(setting, layer))
    return [
        _products(layer, QKV, qkv, tokens, itemsize, qkv[0].slot.in_features)[0],
        Op(
            layer,
            ATTENTION,
            scores.flops + 2 * tokens * rebuilt,
            itemsize * rebuilt,
            scores.activation_bytes,
            (ATTENTION,),
        ),
        *_products(layer, OUTPUT, [linears["o"]], tokens, itemsize, shape.heads * shape.head_dim),
    ]


def _rank_space(shape: ModelShape, layer: int, linears: dict[str, _Linear], setting: Setting) -> list[Op]:
    """q and k folded together and v into the output projection: attention at head dim r
    (`flashsvd.bench.counts.rank_space_layer`)."""
    tokens, itemsize = setting.batch * setting.seq, setting.itemsize
    group = shape.heads // shape.kv_heads
    ranks = {name: linears[name].ranks for name in "qkv"}
    scores = [
        min(own, ranks["k"][head // group]) if group == 1 else ranks["k"][head // group]
        for head, own in enumerate(ranks["q"])
    ]
    values = sum(ranks["v"][head // group] for head in range(shape.heads))
    projected = sum(scores) + sum(scores[::group]) + sum(ranks["v"])
    output = linears["o"]
    hidden, through = output.out, output.width
    if through and values * hidden <= _WHOLE_FACTOR * through * (values + hidden):
        through = 0
    weights = linears["q"].slot.in_features * projected
    ops = [
        Op(
            layer,
            QKV,
            2 * tokens * weights,
            itemsize * weights,
            itemsize * tokens * (linears["q"].slot.in_features + projected),
            (QKV,),
        ),
        Op(
            layer,
            ATTENTION,
            2 * setting.batch * _pairs(setting, layer) * (sum(scores) + values),
            0,
            itemsize * tokens * (projected + values),
            (ATTENTION,),
        ),
    ]
    steps = [(values, through), (through, hidden)] if through else [(values, hidden)]
    for rows, columns in steps:
        ops.append(
            Op(
                layer,
                OUTPUT,
                2 * tokens * rows * columns,
                itemsize * rows * columns,
                itemsize * tokens * (rows + columns),
                (OUTPUT,),
            )
        )
    return ops


def _streamed_feed_forward(layer: int, linears: dict[str, _Linear], setting: Setting) -> list[Op]:
    """Into rank space, through the wide activation on chip, and back: three products of which the middle one is the
    kernel that stores nothing wide."""
    tokens, itemsize = setting.batch * setting.seq, setting.itemsize
    wide = [linears[name] for name in _WIDE if name in linears]
    down = linears.get("down")
    if down is None or not wide:
        return []
    hidden = wide[0].slot.in_features
    into = sum(one.width for one in wide)
    before = sum(one.first for one in wide if one.width)
    middle = sum(one.second if one.width else one.first for one in wide) + down.first
    # Where nothing is cut before or after the kernel, it reads or writes the hidden state itself.
    edges = [(before, hidden, into)] if before else []
    edges.append((middle, into if before else hidden, down.width or down.out))
    if down.width:
        edges.append((down.second, down.width, down.out))
    return [
        Op(
            layer,
            FEED_FORWARD,
            2 * tokens * weights,
            itemsize * weights,
            itemsize * tokens * (read + written),
            (UP, DOWN),
        )
        for weights, read, written in edges
    ]


def _head(shape: ModelShape, setting: Setting) -> list[Op]:
    if setting.vocabulary is None:
        return []
    weights = setting.vocabulary * shape.hidden
    return [Op(-1, HEAD, 2 * setting.batch * weights, setting.itemsize * weights, 0, (HEAD,))]


def _pairs(setting: Setting, layer: int | None) -> int:
    """Pairs of a query and a key that are scored; `flashsvd.bench.counts.scored_pairs`. layer: None for engines whose
    kernels compute what a window masks."""
    window = setting.window(layer) if setting.window and layer is not None else None
    seq = setting.seq
    apart = seq - 1 if window is None else min(window, seq - 1)
    both = seq * (2 * apart + 1) - apart * (apart + 1)
    return (both + seq) // 2 if setting.causal else both
