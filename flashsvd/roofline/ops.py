"""The operations of a forward and of a step, in order."""

from __future__ import annotations

from typing import Literal

from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan
from flashsvd.roofline.linears import groups, linears_of
from flashsvd.roofline.op import ATTENTION, HEAD, Op, Setting
from flashsvd.roofline.stored import stored_layer
from flashsvd.roofline.streamed import flash_layer

Engine = Literal["dense", "lowrank", "flash"]


def forward_ops(plan: RankPlan, engine: Engine, setting: Setting) -> list[Op]:
    """The operations of a forward over [batch, seq] tokens, in order.

    dense leaves the plan aside. lowrank runs two products for each factored linear, with everything between them
    stored. flash rebuilds q, k and v on chip, or attends in rank space, and never stores the wide activation.
    """
    if engine == "dense":
        plan = RankPlan.dense(plan.shape)
    ops: list[Op] = []
    for layer in range(len(plan.shape.layers)):
        ops += (flash_layer if engine == "flash" else stored_layer)(plan, layer, setting)
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
        for name, linears in groups(linears_of(plan, layer)):
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


def _head(shape: ModelShape, setting: Setting) -> list[Op]:
    if setting.vocabulary is None:
        return []
    weights = setting.vocabulary * shape.hidden
    return [Op(-1, HEAD, 2 * setting.batch * weights, setting.itemsize * weights, 0, (HEAD,))]
