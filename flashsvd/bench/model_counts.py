"""Counts of whole models: a forward over a batch, and one more token of every sequence.

Letters as in `flashsvd.bench.counts`."""

from __future__ import annotations

from flashsvd.bench.counts import (
    Work,
    flash_layer,
    lowrank_layer,
    per_head_or_dense,
    rank_space_layer,
)
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan


def dense_work(loaded: LoadedModel, plan: RankPlan, batch: int, seq: int) -> Work:
    """The dense model's blocks, whatever the ranks."""
    return lowrank_work(loaded, RankPlan.dense(plan.shape), batch, seq)


def lowrank_work(loaded: LoadedModel, plan: RankPlan, batch: int, seq: int) -> Work:
    """Blocks with two products per factored linear."""
    causal, itemsize = _is_causal(loaded), loaded.model.dtype.itemsize
    layers = range(len(plan.shape.layers))
    found = (lowrank_layer(plan, layer, batch, seq, itemsize, causal=causal) for layer in layers)
    return sum(found, Work())


def rebuilding_work(loaded: LoadedModel, plan: RankPlan, batch: int, seq: int) -> Work:
    """Blocks of the flash engine that rebuilds q, k and v."""
    return _flash_work(loaded, plan, batch, seq, absorbing=False)


def flash_work(loaded: LoadedModel, plan: RankPlan, batch: int, seq: int) -> Work:
    """Blocks of the flash engine, which attends in rank space where nothing turns or shares the keys."""
    absorbing = loaded.family.rotary is None and plan.shape.heads == plan.shape.kv_heads
    return _flash_work(loaded, plan, batch, seq, absorbing=absorbing)


def _flash_work(loaded: LoadedModel, plan: RankPlan, batch: int, seq: int, *, absorbing: bool) -> Work:
    causal, itemsize, total = _is_causal(loaded), loaded.model.dtype.itemsize, Work()
    for layer in range(len(plan.shape.layers)):
        count = rank_space_layer if absorbing and per_head_or_dense(plan, layer) else flash_layer
        total += count(plan, layer, batch, seq, itemsize, window=_window(loaded, layer), causal=causal)
    return total


def step_layer(
    plan: RankPlan, layer: int, batch: int, context: int, itemsize: int, *, window: int | None = None
) -> Work:
    """One more token of B sequences that have `context` behind them: 2·B FLOPs per weight, and 4·B·T·H·h for attention
    over the T = context keys, or the window + 1 nearest.

    Moves what no way of decoding can do without: every weight once, and k and v of T tokens, e·2·B·T·Hk·h. What a
    token's hidden states take is left out: thousands of times less.
    """
    shape = plan.shape
    keys = context if window is None else min(context, window + 1)
    weights = lowrank_layer(plan, layer, batch, 1, itemsize)
    linears = weights.flops - 4 * batch * shape.heads * shape.head_dim
    return Work(
        flops=linears + 4 * batch * keys * shape.heads * shape.head_dim,
        weight_bytes=weights.weight_bytes,
        activation_bytes=2 * itemsize * batch * keys * shape.kv_heads * shape.head_dim,
    )


def head_work(vocabulary: int, hidden: int, batch: int, itemsize: int) -> Work:
    """Logits of one token of B sequences: 2·B·V·d FLOPs, and e·V·d bytes of weights.

    >>> head_work(32000, 4096, 1, 2).weight_bytes // 2**20
    250
    """
    return Work(2 * batch * vocabulary * hidden, itemsize * vocabulary * hidden)


def step_work(loaded: LoadedModel, plan: RankPlan, batch: int, context: int) -> Work:
    """`step_layer` over all layers, and the head. Of the table of tokens a step reads a row for every sequence: it is
    left out, unless it is the head's, too."""
    total, itemsize = last_token_work(loaded, batch), loaded.model.dtype.itemsize
    for layer in range(len(plan.shape.layers)):
        total += step_layer(plan, layer, batch, context, itemsize, window=_window(loaded, layer))
    return total


def last_token_work(loaded: LoadedModel, batch: int) -> Work:
    """`head_work` of a model's own head."""
    vocabulary, hidden = loaded.model.get_output_embeddings().weight.shape
    return head_work(vocabulary, hidden, batch, loaded.model.dtype.itemsize)


def kv_bytes(plan: RankPlan, batch: int, tokens: int, itemsize: int) -> int:
    """A dense cache of `tokens` places: e·2·B·T·Hk·h in every layer."""
    shape = plan.shape
    return 2 * itemsize * batch * tokens * shape.kv_heads * shape.head_dim * len(shape.layers)


def _is_causal(loaded: LoadedModel) -> bool:
    return loaded.family.task == "language"


def _window(loaded: LoadedModel, layer: int) -> int | None:
    family = loaded.family
    return family.window(loaded.model.config, layer) if family.window else None
