"""The ways of running an attention sublayer, dense and from factors. A new one is one entry of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from flashsvd.bench.attention_sublayer import Sublayer
from flashsvd.bench.contest import Contestant
from flashsvd.bench.counts import Work, dense_layer, flash_layer, lowrank_layer, rank_space_layer
from flashsvd.bench.ops import op_contestant


@dataclass(frozen=True)
class _Entry:
    what: str
    count: Callable[..., Work]
    run: Callable[[Sublayer], torch.Tensor]


_TABLE: Mapping[str, _Entry] = {
    "dense": _Entry(
        "packed q, k, v product, SDPA, output product",
        lambda plan, *rest, causal: dense_layer(plan.shape, *rest, causal=causal),
        Sublayer.dense,
    ),
    "lowrank": _Entry("thin products, q, k, v rebuilt in memory, SDPA", lowrank_layer, Sublayer.lowrank),
    "flash-rebuild": _Entry("thin products, q, k, v rebuilt on chip", flash_layer, Sublayer.rebuild),
    "flash": _Entry("absorbed factors, attention in rank space", rank_space_layer, Sublayer.rank_space),
}


_NO_RANK_SPACE = (
    "factors are absorbed only where no turn lies between them and every head has keys of its own"
)


def contestants(sublayer: Sublayer) -> Mapping[str, Contestant]:
    """Every way of running the sublayer, by the name of its row; those from factors are judged against them."""
    batch, seq, _ = sublayer.x.shape
    return {
        name: op_contestant(
            entry.what,
            entry.count(sublayer.plan, 0, batch, seq, sublayer.x.element_size(), causal=sublayer.causal),
            lambda run=entry.run: run(sublayer),  # type: ignore[misc]
            sublayer.x.device,
            left_out=_NO_RANK_SPACE if name == "flash" and sublayer.absorbed is None else None,
        )
        for name, entry in _TABLE.items()
    }
