"""A model's forward as CUDA graphs: one per shape, replayed without the CPU's share of the work."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.engines.capture import Captured, capture
from flashsvd.errors import DeviceError

KEPT_GRAPHS = 8
"""The shapes used last keep their graphs; they share one pool of memory."""
_STATIC = ("input_ids", "attention_mask", "token_type_ids")
_PER_TOKEN = ("start_logits", "end_logits")


@dataclass(frozen=True)
class _Key:
    """What a graph was captured for. The weights' address changes when a model is moved."""

    batch: int
    seq: int
    names: tuple[str, ...]
    weights: tuple[int, torch.dtype]


@dataclass(frozen=True)
class _Kept:
    captured: Captured[Any]
    inputs: Mapping[str, torch.Tensor]


def bucket(batch: int, seq: int, longest: int) -> tuple[int, int]:
    """The shape that a batch is padded to, so that few graphs serve many shapes: sequences to multiples of 64 (at
    most `longest`), batches to powers of two up to 8 and to multiples of 8 from there.

    >>> bucket(3, 50, 512), bucket(20, 512, 512), bucket(32, 500, 510)
    ((4, 64), (24, 512), (32, 510))
    """
    rows = 1 << (batch - 1).bit_length() if batch <= 8 else -(-batch // 8) * 8
    return rows, max(seq, min(longest, -(-seq // 64) * 64))


class GraphedForward:
    """Stands in for `model.forward`. Calls with token ids, a padding mask and token types replay a graph; any other
    call, and any outside inference, goes to the model as it is.

    The first call of a shape runs the model three times: twice to warm up, once to capture. Outputs are copies; with
    copied=False they are the graph's own memory, which the next call writes over.
    """

    def __init__(self, model: Any, longest: int, *, copied: bool = True) -> None:
        if model.device.type != "cuda":
            raise DeviceError(f"graph=True needs a model on a CUDA device, got {model.device}; leave it out")
        self._model = model
        self._forward: Callable[..., Any] = model.forward
        self._longest = longest
        self._copied = copied
        self._graphs: OrderedDict[_Key, _Kept] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def peak_bytes(self) -> int:
        """What the largest captured forward takes beside weights and inputs, as the allocator counted it, with the
        copies of its outputs."""
        found = [
            kept.captured.peak_bytes
            + (sum(out.nbytes for out in _tensors(kept.captured.result)) if self._copied else 0)
            for kept in self._graphs.values()
        ]
        return max(found, default=0)

    def clear(self) -> None:
        """Forgets every graph, as after reading other weights."""
        self._graphs.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip(_STATIC, args, strict=False)) | kwargs
        given = {name: value for name, value in given.items() if value is not None}
        if len(args) > 2 or not self._replayable(given):
            return self._forward(*args, **kwargs)
        batch, seq = given["input_ids"].shape
        rows, columns = bucket(batch, seq, self._longest)
        if (rows, columns) != (batch, seq) and "attention_mask" not in given:
            given["attention_mask"] = torch.ones_like(given["input_ids"])
        weight = next(self._model.parameters())
        key = _Key(rows, columns, tuple(sorted(given)), (weight.data_ptr(), weight.dtype))
        kept = self._graphs.get(key) or self._capture(key, given)
        self._graphs[key] = kept
        self._graphs.move_to_end(key)
        while len(self._graphs) > KEPT_GRAPHS:
            self._graphs.popitem(last=False)
        for name, static in kept.inputs.items():
            _fill(static, given[name])
        kept.captured.graph.replay()

        def returned(name: str, out: torch.Tensor) -> torch.Tensor:
            part = _cut(name, out, batch, seq, columns)
            return part.clone() if self._copied else part

        return _map(kept.captured.result, returned)

    def _replayable(self, given: Mapping[str, Any]) -> bool:
        ids = given.get("input_ids")
        if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.numel() == 0 or torch.is_grad_enabled():
            return False
        return not self._model.training and all(
            name in _STATIC and isinstance(value, torch.Tensor) and value.shape == ids.shape and value.is_cuda
            for name, value in given.items()
        )

    def _capture(self, key: _Key, given: Mapping[str, torch.Tensor]) -> _Kept:
        device = self._model.device
        inputs = {
            name: torch.zeros(key.batch, key.seq, dtype=given[name].dtype, device=device)
            for name in key.names
        }
        for name, static in inputs.items():
            _fill(static, given[name])
        return _Kept(capture(lambda: self._forward(**inputs), device, self._pool), inputs)


def _fill(static: torch.Tensor, value: torch.Tensor) -> None:
    """Copies a batch into the corner of a bucket; zero elsewhere, which masks what is padding."""
    rows, columns = value.shape
    if static.shape != value.shape:
        static.zero_()
    static[:rows, :columns].copy_(value)


def _cut(name: str, out: torch.Tensor, batch: int, seq: int, columns: int) -> torch.Tensor:
    """The part of a bucket's output that was asked for."""
    per_token = name in _PER_TOKEN or (out.dim() > 2 and out.shape[1] == columns)
    return out[:batch, :seq] if per_token else out[:batch]


def _map(value: Any, change: Callable[[str, torch.Tensor], torch.Tensor], name: str = "") -> Any:
    """A model's output with every tensor changed; `change` is told the field."""
    if isinstance(value, torch.Tensor):
        return change(name, value)
    if isinstance(value, tuple | list):
        return type(value)(_map(item, change, name) for item in value)
    if dataclasses.is_dataclass(value) and isinstance(value, Mapping):
        return type(value)(**{key: _map(item, change, key) for key, item in value.items()})
    return value


def _tensors(value: Any) -> list[torch.Tensor]:
    """Every tensor of a model's output."""
    found: list[torch.Tensor] = []

    def keep(_: str, out: torch.Tensor) -> torch.Tensor:
        found.append(out)
        return out

    _map(value, keep)
    return found
