"""What each slot costs in milliseconds at a few ranks and dense, measured here: the costs of a latency budget."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from flashsvd.allocate import SlotLatency, choices
from flashsvd.data import check_input_size, timing_ids
from flashsvd.engines.modules import low_rank_module
from flashsvd.factors import layout_ranks
from flashsvd.measure.latency import time_engines
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.progress import Progress
from flashsvd.results import Quantiles

_MOST_RANKS = 12
_SECONDS_PER_SLOT = 10.0
_SECONDS_WHOLE = 20.0


def latency_table(
    loaded: LoadedModel,
    shape: ModelShape,
    batch: int,
    seq: int,
    *,
    step: int | None = None,
    repeats: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[Slot, SlotLatency]:
    """Median times of every kind of slot, at up to 12 of the ranks that an allocator tries, in the model's dtype.

    The modules are those of the low-rank engine with random numbers in them, on an input [batch, seq, in]. What a slot
    costs inside a model, with its caches warm or cold, is not quite that: see `measured_ms`.

    Raises:
        InputError: a batch or sequence that the model does not take.
    """
    check_input_size(loaded, batch, seq)
    kinds = list(dict.fromkeys(slot for _, slot in shape))
    table = {}
    for done, slot in enumerate(kinds):
        if progress:
            progress("Timing the projections", done / len(kinds))
        table[slot] = _time_slot(loaded, slot, batch, seq, step, repeats, seed)
    return table


@torch.inference_mode()
def measured_ms(
    models: dict[str, nn.Module],
    loaded: LoadedModel,
    batch: int,
    seq: int,
    *,
    repeats: int = 20,
    seed: int = 0,
) -> dict[str, Quantiles]:
    """Whole forward passes of several models on the same tokens [batch, seq], in turn."""
    ids = timing_ids(loaded, batch, seq, seed)
    mask = torch.ones_like(ids)
    calls = {name: _forward(model, ids, mask) for name, model in models.items()}
    timed = time_engines(calls, loaded.device, repeats=repeats, budget_seconds=_SECONDS_WHOLE)
    return {name: quantiles for name, (quantiles, _) in timed.items()}


@torch.inference_mode()
def _time_slot(
    loaded: LoadedModel, slot: Slot, batch: int, seq: int, step: int | None, repeats: int, seed: int
) -> SlotLatency:
    dtype, device = loaded.model.dtype, loaded.device
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    x = random(batch, seq, slot.in_features)
    tried = [rank for rank in choices(slot, step) if rank is not None]
    spread = max(1, -(-len(tried) // _MOST_RANKS))
    ranks = sorted({*tried[::spread], tried[-1]}) if tried else []
    calls: dict[str, Callable[[], object]] = {}
    for rank in ranks:
        stored = layout_ranks(slot, (rank,) * slot.units)
        assert stored is not None
        with torch.device("meta"):
            module = low_rank_module(slot, stored, bias=True)
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(random(*parameter.shape), requires_grad=False))
        calls[str(rank)] = _apply(module.eval(), x)
    weight, bias = random(slot.out_features, slot.in_features), random(slot.out_features)
    calls["dense"] = lambda: torch.nn.functional.linear(x, weight, bias)
    timed = time_engines(calls, device, repeats=repeats, budget_seconds=_SECONDS_PER_SLOT)
    dense = timed["dense"][0].p50
    if not ranks:
        return SlotLatency((1,), (dense,), dense)
    return SlotLatency(tuple(ranks), tuple(timed[str(rank)][0].p50 for rank in ranks), dense)


def _apply(module: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    return lambda: module(x)


def _forward(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> Callable[[], object]:
    return lambda: model(input_ids=ids, attention_mask=mask)
