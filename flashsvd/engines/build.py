"""Dense model + factors -> the same HF model, run by one of the engines."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import nn

from flashsvd.engines import ENGINES
from flashsvd.engines.graph import GraphedForward
from flashsvd.engines.modules import FusedLinear, low_rank_module
from flashsvd.engines.parts import CacheKind
from flashsvd.engines.stream import stream
from flashsvd.errors import InputError
from flashsvd.factors import Factors, LowRank, layout_ranks
from flashsvd.models.family import Family
from flashsvd.models.linears import LINEARS, fused_sizes, linear_of
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
    rebuild: bool = False,
    cache: CacheKind = "dense",
    graph: bool | Literal["static"] = False,
) -> Any:
    """A model object for one engine. Its parameters are those of `loaded` and `factors`: nothing is copied.

    dense is the loaded model itself. lowrank exchanges each factored linear for its two factors. flash does that
    and streams attention and feed-forward; it makes a few tensors of its own of the factors, once, and writes the
    hidden states of a block over those of the block before (see `flashsvd.engines.stream.stream`, also for
    `rebuild` and `cache`). With `graph`, on CUDA, its forward is captured once per shape and then replayed
    (`flashsvd.engines.graph`): "static" leaves an output where the graph wrote it, and where the next call writes.
    `save_pretrained` works on each; see `flashsvd.engines.hub`.

    Raises:
        InputError: an unknown engine, no factors where they are needed, graph=True for another engine than flash, or
            a family that flash does not run yet.
        DeviceError: graph=True on another device than CUDA.
    """
    check_engine(engine)
    if graph and engine != "flash":
        raise InputError(f"graph=True is for the flash engine, got engine {engine!r}; leave it out")
    if graph and loaded.family.decoder is not None:
        raise InputError(
            f"graph=True is for encoders: {loaded.family.title} runs in graphs through flashsvd.decoding"
        )
    if engine == "dense":
        return loaded.model
    if factors is None or plan is None:
        raise InputError(
            f"engine {engine!r} needs factors and their plan: make them with flashsvd.factors.factorise"
        )
    shared = {id(tensor): tensor for tensor in (*loaded.model.parameters(), *loaded.model.buffers())}
    model = copy.deepcopy(loaded.model, memo=dict(shared))
    biased = any(factor.shift is not None for factor in factors.values())
    exchange_linears(model, loaded.family, plan, biased=biased)
    rights: dict[int, nn.Parameter] = {}
    for (layer, name), factor in factors.items():
        module = model.base_model.get_submodule(loaded.family.path(layer, name))
        module.U = nn.Parameter(factor.u, requires_grad=False)
        module.V = rights.setdefault(id(factor.v), nn.Parameter(factor.v, requires_grad=False))
        if biased:
            module.bias = nn.Parameter(_biased(loaded, layer, name, factor), requires_grad=False)
    if engine == "flash":
        stream(model, loaded.family, plan.shape, backend, rebuild=rebuild, cache=cache)
    from flashsvd.engines.hub import mark

    mark(model, plan, method, engine, biased=biased, cache=cache)
    if graph:
        graphed = GraphedForward(model, plan.shape.max_positions, copied=graph != "static")
        model.forward = graphed
        model.register_load_state_dict_post_hook(lambda *_: graphed.clear())
    return model


def _biased(loaded: LoadedModel, layer: int, name: str, factor: LowRank) -> torch.Tensor:
    """The dense bias (0 where there is none) and what the cut takes from the mean output."""
    dense = linear_of(loaded.model.base_model, loaded.family, loaded.shape, layer, name).bias
    assert factor.shift is not None
    return factor.shift + dense if isinstance(dense, torch.Tensor) else factor.shift


def check_engine(engine: str) -> None:
    """Raises InputError for an unknown engine."""
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")


def exchange_linears(model: Any, family: Family, plan: RankPlan, *, biased: bool = False) -> None:
    """Puts empty low-rank modules in the place of the linears that the plan factors; they keep the bias.

    A fused linear of which any slot is factored becomes a FusedLinear, whose other slots go on using their rows of
    the dense weight. One of which none is factored stays as it is. biased: give every low-rank module a bias of its
    own. Layers that share a basis get one V between them.
    """
    for layer, slot in plan.shape:
        ranks = layout_ranks(slot, plan.get(layer, slot.name))
        if ranks is None:
            continue
        parent_path, _, leaf = family.path(layer, slot.name).rpartition(".")
        parent = model.base_model.get_submodule(parent_path)
        if isinstance(parent, LINEARS):
            parent = FusedLinear(parent, fused_sizes(family, plan.shape, layer, slot.name)).train(
                model.training
            )
            model.base_model.set_submodule(parent_path, parent)
        dense = getattr(parent, leaf)
        with torch.device("meta"):
            module = low_rank_module(slot, ranks, bias=biased or dense.bias is not None)
        if not biased:
            module.bias = dense.bias
        setattr(parent, leaf, module.train(model.training))
        first = plan.shape.group(layer, slot.name)[0]
        if first != layer:
            _share_right_factor(model, family.path(first, slot.name), family.path(layer, slot.name))


def _share_right_factor(model: Any, source: str, target: str) -> None:
    """One V for two modules, and word of it for transformers' saving and loading, which keep tied weights once."""
    base = model.base_model
    base.get_submodule(target).V = base.get_submodule(source).V
    prefix = "" if base is model else f"{model.base_model_prefix}."
    tied = {f"{prefix}{target}.V": f"{prefix}{source}.V"}
    model._tied_weights_keys = {**(model._tied_weights_keys or {}), **tied}
    model.all_tied_weights_keys = {**model.all_tied_weights_keys, **tied}


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers; what several of them share, as tied weights and views do, counts once."""
    return memory_bytes((*model.parameters(), *model.buffers()))


def memory_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the memory that tensors lie in, every piece of it once."""
    spans: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        # From its first to its last element: less than nbytes for an expanded one, more for columns of a wider one.
        reach = 1 + sum(
            (int(size) - 1) * int(step) for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
        start = int(tensor.storage_offset()) * tensor.element_size()
        span = (start, start + reach * tensor.element_size() * bool(tensor.numel()))
        spans.setdefault((str(tensor.device), storage.data_ptr()), []).append(span)
    total = 0
    for found in spans.values():
        seen = 0
        for start, end in sorted(found):
            total += max(0, end - max(start, seen))
            seen = max(seen, end)
    return total


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
