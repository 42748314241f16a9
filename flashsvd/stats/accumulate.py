"""Sums over what goes into linears, added up by hooks while a model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn

from flashsvd.errors import FlashSVDError, InputError, NonFiniteError
from flashsvd.models.family import Family
from flashsvd.models.inputs import Batch
from flashsvd.models.linears import LINEARS
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.stats.base import InputStats, Need

Point = tuple[int, str]
"""One place where inputs are looked at: the layer, and the first of the slots that get them."""

_SHARED_INPUTS = (("q", "k", "v"), ("gate", "up"))
_CHUNK_TOKENS = 4096


def input_name(slots: Sequence[Slot], name: str) -> str:
    """The first slot of a layer that gets the same input as this one.

    >>> input_name([Slot("q", 8, 8), Slot("k", 8, 8), Slot("o", 8, 8)], "k")
    'q'
    """
    for group in _SHARED_INPUTS:
        if name in group:
            return next(slot.name for slot in slots if slot.name in group)
    return name


def module_of(base_model: nn.Module, family: Family, layer: int, name: str) -> nn.Module:
    """The module that gets a slot's input: its own, or the one that computes several slots."""
    path = family.path(layer, name)
    owner = base_model.get_submodule(path.rpartition(".")[0])
    return owner if isinstance(owner, LINEARS) else base_model.get_submodule(path)


def points(
    base_model: nn.Module, family: Family, shape: ModelShape, layers: Collection[int]
) -> dict[Point, nn.Module]:
    """Every different input of these layers, and the module that it is read from."""
    found = {}
    for layer in layers:
        for slot in shape.layers[layer]:
            if input_name(shape.layers[layer], slot.name) == slot.name:
                found[layer, slot.name] = module_of(base_model, family, layer, slot.name)
    return found


def padding_mask(batch: Batch, number: int, device: torch.device) -> torch.Tensor:
    """Where a batch has tokens, bool [B, S].

    Raises:
        InputError: no input_ids [B, S], or a mask of another shape.
    """
    ids = batch.get("input_ids")
    if ids is None or ids.dim() != 2:
        got = "none" if ids is None else str(list(ids.shape))
        raise InputError(f"batch {number + 1} needs input_ids of shape [batch, sequence], got {got}")
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.ones(ids.shape, dtype=torch.bool, device=device)
    if mask.shape != ids.shape:
        raise InputError(
            f"batch {number + 1} needs an attention_mask of shape {list(ids.shape)} like its input_ids, "
            f"got {list(mask.shape)}"
        )
    return mask.to(device).bool()


def sequences(x: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """The tokens of every sequence, [tokens, n] each, also of a model that drops the padding itself.

    x: [B, S, n], [B·S, n] or the unpadded tokens one after another; mask: bool [B, S].
    """
    if x.shape[:-1] != mask.shape:
        flat = x.reshape(-1, x.shape[-1])
        lengths = mask.sum(1).tolist()
        if len(flat) == sum(lengths):
            return list(flat.split(lengths))
        x = _padded(flat, mask)
    return [row[kept] for row, kept in zip(x, mask, strict=True)]


def tokens_of(x: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
    """The unpadded tokens of x, [tokens, n]; x as for `sequences`, count: the tokens of the mask."""
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) == count:
        return flat
    return _padded(flat, mask)[mask]


def _padded(flat: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if len(flat) != mask.numel():
        raise FlashSVDError(
            f"a linear got {len(flat)} tokens of a batch of {mask.numel()} ({int(mask.sum())} without padding): "
            "models that run a batch in pieces are not supported (set chunk_size_feed_forward=0)"
        )
    return flat.unflatten(0, mask.shape)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 matrices are float32 products while inside, not TF32 or bf16 ones."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


class Enough(Exception):
    """Raised out of a forward pass of which nothing more is needed."""


class Taps:
    """While open, adds up statistics of the inputs of modules, batch by batch, in float64 on their device.

    Between `begin` and `end` the model runs one batch. Products are float32 ones of at most 4096 tokens (float64
    ones of float64 inputs). brief: a pass is stopped by `Enough` once every module has had its input.
    """

    def __init__(
        self, modules: Mapping[Point, nn.Module], needs: Collection[Need], *, brief: bool = False
    ) -> None:
        self._modules = modules
        self._needs = frozenset(needs)
        self._brief = brief
        self._sums: dict[Point, dict[Need, torch.Tensor]] = {}
        self._finite: dict[Point, torch.Tensor] = {}
        self._handles: list[Any] = []
        self.tokens = 0

    def __enter__(self) -> Self:
        for point, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._hook(point)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self, mask: torch.Tensor) -> None:
        """Before a batch. mask: bool [B, S], False at padding."""
        self._mask, self._count = mask, int(mask.sum())
        self._finite.clear()

    def end(self, number: int) -> None:
        """After batch `number`.

        Raises:
            NonFiniteError: an input held NaN or infinity; the message names the first.
            FlashSVDError: a module did not run.
        """
        for point in self._modules:
            if point not in self._finite:
                raise FlashSVDError(f"L{point[0] + 1}.{point[1]} did not run in batch {number + 1}")
        flags = list(self._finite.values())
        finite = torch.stack([flag.to(flags[0].device) for flag in flags]).tolist()
        # In the order in which they ran: what is not finite first is where it went wrong.
        for (layer, name), fine in zip(self._finite, finite, strict=True):
            if not fine:
                raise NonFiniteError(
                    f"the inputs of L{layer + 1}.{name} are not finite, or too large to square, in batch "
                    f"{number + 1}: check the weights before it, or load the model in fp32"
                )
        self.tokens += self._count

    def _hook(self, point: Point) -> Any:
        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            with torch.no_grad():
                self._add(point, tokens_of(args[0].detach(), self._mask, self._count))
            if self._brief and len(self._finite) == len(self._modules):
                raise Enough

        return look

    def _add(self, point: Point, x: torch.Tensor) -> None:
        sums = self._sums.setdefault(point, {})
        if not sums:
            for need in self._needs & {"gram", "mean", "mean_abs"}:
                size = (x.shape[1],) * (2 if need == "gram" else 1)
                sums[need] = torch.zeros(size, dtype=torch.float64, device=x.device)
        finite = torch.isfinite(x.sum(dtype=torch.float64))
        for chunk in x.split(_CHUNK_TOKENS):
            if "gram" in sums:
                rows = wide(chunk)
                with full_precision():
                    product = rows.T @ rows
                finite = finite & torch.isfinite(product.diagonal()).all()
                sums["gram"] += product
        if "mean" in sums:
            sums["mean"] += x.sum(0, dtype=torch.float64)
        if "mean_abs" in sums:
            sums["mean_abs"] += x.abs().sum(0, dtype=torch.float64)
        self._finite[point] = finite

    def result(self, point: Point) -> InputStats:
        """What was added up of one input; without fisher."""
        sums = self._sums.get(point, {})
        gram = sums.get("gram")
        means = {need: sums[need] / self.tokens for need in ("mean", "mean_abs") if need in sums}
        return InputStats(self.tokens, None if gram is None else (gram + gram.T) / 2, **means)


def layer_stats(taps: Taps, shape: ModelShape, layer: int) -> dict[str, InputStats]:
    """The statistics of every slot of a layer; slots with one input hold the same tensors."""
    slots = shape.layers[layer]
    inputs = {name: taps.result((layer, name)) for name in {input_name(slots, slot.name) for slot in slots}}
    return {slot.name: inputs[input_name(slots, slot.name)] for slot in slots}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module is in eval mode while inside."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def model_inputs(model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Any]:
    """A batch as keyword arguments: without labels, and without a KV cache where the model would make one."""
    import inspect

    inputs: dict[str, Any] = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    return inputs
