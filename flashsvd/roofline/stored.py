"""A layer whose every tensor between two products is stored: dense and low-rank."""

from __future__ import annotations

from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan
from flashsvd.roofline.linears import WIDE, groups, linears_of, products
from flashsvd.roofline.op import ATTENTION, DOWN, OUTPUT, Op, Setting


def stored_layer(plan: RankPlan, layer: int, setting: Setting) -> list[Op]:
    """Dense and low-rank: everything between two products is stored."""
    shape, linears, itemsize = plan.shape, linears_of(plan, layer), setting.itemsize
    tokens, ops = setting.batch * setting.seq, []
    wide = sum(linears[name].out for name in WIDE if name in linears)
    columns = {OUTPUT: shape.heads * shape.head_dim, DOWN: wide}
    for name, members in groups(linears):
        if name == ATTENTION:
            read = sum(linears[slot].out for slot in "qkv")
            ops.append(attention_op(shape, layer, setting, read, scored_pairs(setting, None)))
        else:
            hidden = members[0].slot.in_features
            ops += products(layer, name, members, tokens, itemsize, columns.get(name, hidden))
    return ops


def attention_op(shape: ModelShape, layer: int, setting: Setting, columns_read: int, pairs: int) -> Op:
    """Attention over keys that are stored; pairs: of a query and a key, those that are scored."""
    width, tokens = shape.heads * shape.head_dim, setting.batch * setting.seq
    return Op(
        layer,
        ATTENTION,
        4 * setting.batch * pairs * width,
        0,
        setting.itemsize * tokens * (columns_read + width),
        (ATTENTION,),
    )


def scored_pairs(setting: Setting, layer: int | None) -> int:
    """Pairs of a query and a key that are scored; `flashsvd.bench.counts.scored_pairs`. layer: None for engines whose
    kernels compute what a window masks."""
    window = setting.window(layer) if setting.window and layer is not None else None
    seq = setting.seq
    apart = seq - 1 if window is None else min(window, seq - 1)
    both = seq * (2 * apart + 1) - apart * (apart + 1)
    return (both + seq) // 2 if setting.causal else both
