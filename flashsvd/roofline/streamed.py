"""A layer of the flash engine: q, k and v rebuilt on chip or never, and no wide activation."""

from __future__ import annotations

from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan
from flashsvd.roofline.linears import WIDE, Linear, linears_of, products
from flashsvd.roofline.op import ATTENTION, DOWN, FEED_FORWARD, OUTPUT, QKV, UP, Op, Setting
from flashsvd.roofline.stored import attention_op, scored_pairs

_WHOLE_FACTOR = 1.4
"""As `flashsvd.engines.absorb.WHOLE_FACTOR`, which lives beside torch."""


def flash_layer(plan: RankPlan, layer: int, setting: Setting) -> list[Op]:
    """The operations of one layer, in order."""
    linears = linears_of(plan, layer)
    ops: list[Op] = []
    if "q" in linears:
        per_head = not any(linears[name].width and not linears[name].slot.per_head for name in "qkv")
        attention = _rank_space if setting.absorbing and per_head else _rebuilding
        ops += attention(plan.shape, layer, linears, setting)
    return ops + _streamed_feed_forward(layer, linears, setting)


def _rebuilding(shape: ModelShape, layer: int, linears: dict[str, Linear], setting: Setting) -> list[Op]:
    """The second products of q, k and v run within attention: what they make is never stored."""
    tokens, itemsize = setting.batch * setting.seq, setting.itemsize
    qkv = [linears[name] for name in "qkv"]
    rebuilt = sum(one.second for one in qkv)
    scores = attention_op(shape, layer, setting, sum(one.left for one in qkv), scored_pairs(setting, layer))
    return [
        products(layer, QKV, qkv, tokens, itemsize, qkv[0].slot.in_features)[0],
        Op(
            layer,
            ATTENTION,
            scores.flops + 2 * tokens * rebuilt,
            itemsize * rebuilt,
            scores.activation_bytes,
            (ATTENTION,),
        ),
        *products(layer, OUTPUT, [linears["o"]], tokens, itemsize, shape.heads * shape.head_dim),
    ]


def _rank_space(shape: ModelShape, layer: int, linears: dict[str, Linear], setting: Setting) -> list[Op]:
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
            2 * setting.batch * scored_pairs(setting, layer) * (sum(scores) + values),
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


def _streamed_feed_forward(layer: int, linears: dict[str, Linear], setting: Setting) -> list[Op]:
    """Into rank space, through the wide activation on chip, and back: three products of which the middle one is the
    kernel that stores nothing wide."""
    tokens, itemsize = setting.batch * setting.seq, setting.itemsize
    wide = [linears[name] for name in WIDE if name in linears]
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
