"""Dense model + factors -> the same HF model, run by one of the engines."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from flashsvd.engines import ENGINES
from flashsvd.engines.modules import low_rank_module
from flashsvd.engines.stream import stream
from flashsvd.errors import InputError
from flashsvd.factors import Factors, layout_ranks
from flashsvd.models.family import Family
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan


def build(
    loaded: LoadedModel,
    engine: str,
    factors: Factors | None = None,
    plan: RankPlan | None = None,
    *,
    method: str = "svd",
    backend: str | None = None,
) -> Any:
    """A model object for one engine. It shares every tensor with `loaded` and `factors`: nothing is copied.

    dense is the loaded model itself. lowrank exchanges each factored linear for its two factors. flash does that
    and streams attention and feed-forward. `save_pretrained` works on each; see `flashsvd.engines.hub`.

    Raises:
        InputError: an unknown engine, or no factors where they are needed.
    """
    check_engine(engine)
    if engine == "dense":
        return loaded.model
    if factors is None or plan is None:
        raise InputError(
            f"engine {engine!r} needs factors and their plan: make them with flashsvd.factors.factorise"
        )
    shared = {id(tensor): tensor for tensor in (*loaded.model.parameters(), *loaded.model.buffers())}
    model = copy.deepcopy(loaded.model, memo=dict(shared))
    exchange_linears(model, loaded.family, plan)
    for (layer, name), factor in factors.items():
        module = model.base_model.get_submodule(loaded.family.path(layer, name))
        dense = loaded.model.base_model.get_submodule(loaded.family.path(layer, name))
        module.U = nn.Parameter(factor.u, requires_grad=False)
        module.V = nn.Parameter(factor.v, requires_grad=False)
        module.bias = dense.bias
    if engine == "flash":
        stream(model, loaded.family, plan.shape, backend)
    from flashsvd.engines.hub import mark

    mark(model, plan, method, engine)
    return model


def check_engine(engine: str) -> None:
    """Raises InputError for an unknown engine."""
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")


def exchange_linears(model: Any, family: Family, plan: RankPlan) -> None:
    """Puts empty low-rank modules in the place of the linears that the plan factors."""
    for layer, slot in plan.shape:
        ranks = layout_ranks(slot, plan.get(layer, slot.name))
        if ranks is None:
            continue
        parent_path, _, leaf = family.path(layer, slot.name).rpartition(".")
        parent = model.base_model.get_submodule(parent_path)
        with torch.device("meta"):
            module = low_rank_module(slot, ranks, bias=getattr(parent, leaf).bias is not None)
        setattr(parent, leaf, module.train(model.training))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, each storage once."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr(), str(tensor.device)] = min(storage.nbytes(), tensor.nbytes)
    return sum(storages.values())


@contextlib.contextmanager
def checked_between_layers(model: Any, family: Family, check: Callable[[], None]) -> Iterator[None]:
    """Calls `check` before every block while inside; it may raise Cancelled to stop a run between two layers."""
    handles = [
        block.register_forward_pre_hook(lambda module, args: check())
        for block in family.layers(model.base_model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
