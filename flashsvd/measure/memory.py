"""The memory timeline of one forward: every storage born and freed, by op, module and kind.

A dispatch mode sees every op on any device and follows the storages of its outputs. What an op takes and gives back
inside itself it cannot see; on CUDA the allocator's own counters, read around every op, supply that part as
workspace, so that the timeline's peak is the allocator's. One path for both devices, instead of the allocator's
history on one of them: the history knows addresses and stacks, but not which module of the model asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flashsvd.engines.build import weight_bytes
from flashsvd.results import TIMELINE_COLUMNS

_CUDA_BLOCK_BYTES = 512


@dataclass
class _Call:
    """One running module."""

    path: str
    layer: int
    closed: bool = False


@dataclass
class _Live:
    """One storage that is alive, and the row of its birth."""

    storage: StorageWeakRef
    bytes: int
    row: int
    call: _Call


@dataclass(eq=False)
class Recorder(TorchDispatchMode):
    """Sees every op between its entry and its exit; `rows` are those of a timeline but for the running total."""

    device: torch.device
    started: float = field(default_factory=time.perf_counter)
    rows: list[list[Any]] = field(default_factory=list)
    live: dict[int, _Live] = field(default_factory=dict)
    resident: dict[int, StorageWeakRef] = field(default_factory=dict)
    calls: list[_Call] = field(default_factory=lambda: [_Call("", -1)])
    event: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        if self.device.type == "cuda" and self.device.index is None:
            # As tensors name it, or none of them would be on it.
            self.device = torch.device("cuda", torch.cuda.current_device())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            # A question, that only tensors without memory are asked this way.
            return func(*args, **(kwargs or {}))
        self.bury()
        self.event += 1
        # What an op takes and no op of this run made was there before: inputs, masks.
        self.settle(tree_leaves((args, kwargs)))
        cuda = self.device.type == "cuda"
        if cuda:
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        out = func(*args, **(kwargs or {}))
        op = str(func).removesuffix(".default").removeprefix("aten.")
        born = self.births(out, op)
        if cuda:
            # The allocator hands out whole blocks, up to 1 MiB larger than what was asked for.
            born += self.widen(torch.cuda.memory_allocated(self.device) - before - born) if born else 0
            rise = torch.cuda.max_memory_allocated(self.device) - before
            if rise > born:
                self.inside(op, rise - born)
        return out

    def unknown(self, value: Any) -> bool:
        """Whether this is a tensor on our device whose storage was not seen before."""
        if not isinstance(value, torch.Tensor) or value.device != self.device:
            return False
        storage = value.untyped_storage()
        seen = self.resident.get(storage._cdata)
        # An address may serve again once its storage has died.
        return storage._cdata not in self.live and storage.nbytes() > 0 and (seen is None or seen.expired())

    def settle(self, values: Iterable[Any]) -> None:
        """Takes tensors as resident: they are no part of what the run allocates."""
        for value in values:
            if self.unknown(value):
                storage = value.untyped_storage()
                self.resident[storage._cdata] = StorageWeakRef(storage)

    def births(self, out: Any, op: str) -> int:
        """Records every new storage among an op's outputs; returns their bytes."""
        total = 0
        for tensor in tree_leaves(out):
            if not self.unknown(tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            count = _rounded(storage.nbytes(), self.device)
            total += count
            call = self.calls[-1]
            self.live[key] = _Live(StorageWeakRef(storage), count, len(self.rows), call)
            self.rows.append([self.event, op, call.path, call.layer, "activation", count, self.now()])
        return total

    def widen(self, count: int) -> int:
        """Adds what the allocator gave beyond the request to the newest birth; returns it."""
        if count <= 0:
            return 0
        self.rows[-1][5] += count
        newest = max(self.live.values(), key=lambda entry: entry.row)
        newest.bytes += count
        return count

    def bury(self) -> None:
        """Records every storage that was freed since the last look."""
        for key in [key for key, entry in self.live.items() if entry.storage.expired()]:
            entry = self.live.pop(key)
            op, path, layer = self.rows[entry.row][1:4]
            category = self.rows[entry.row][4]
            if category == "activation" and not entry.call.closed and entry.call.path:
                # It died inside the module that made it: nobody else ever saw it.
                category = self.rows[entry.row][4] = "workspace"
            self.rows.append([self.event, op, path, layer, category, -entry.bytes, self.now()])

    def inside(self, op: str, count: int) -> None:
        """Memory that an op took and gave back within itself."""
        call = self.calls[-1]
        for sign in (1, -1):
            self.rows.append([self.event, op, call.path, call.layer, "workspace", sign * count, self.now()])

    def whole(self, op: str, count: int) -> None:
        """An op that is not run, and would take and give back this much memory."""
        self.bury()
        self.event += 1
        self.inside(op, count)

    def name_cache(self, tensors: Iterable[torch.Tensor]) -> None:
        """Says of tensors that are alive that they are keys and values kept for later tokens."""
        for tensor in tensors:
            entry = self.live.get(tensor.untyped_storage()._cdata)
            if entry is not None:
                self.rows[entry.row][4] = "kv cache"

    def now(self) -> float:
        return (time.perf_counter() - self.started) * 1e3

    @contextmanager
    def following(self, model: nn.Module, blocks: list[nn.Module]) -> Iterator[None]:
        """Keeps `calls` the stack of running modules."""
        layers = {id(block): index for index, block in enumerate(blocks)}
        with ExitStack() as stack:
            for path, module in model.named_modules():
                layer = layers.get(id(module))

                def enter(_: Any, __: Any, path: str = path, layer: int | None = layer) -> None:
                    self.bury()
                    self.calls.append(_Call(path, self.calls[-1].layer if layer is None else layer))

                def leave(_: Any, __: Any, ___: Any) -> None:
                    self.bury()
                    self.calls.pop().closed = True

                leave.reads_at_once = True  # type: ignore[attr-defined]
                for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave)):
                    stack.callback(handle.remove)
            yield


def record_timeline(
    model: Any,
    blocks: list[nn.Module],
    forward: Callable[[], Any],
    cached: Callable[[Any], Iterable[torch.Tensor]] | None = None,
) -> pd.DataFrame:
    """Runs `forward` once and returns its timeline (`flashsvd.results.TIMELINE_COLUMNS`).

    model: whose weights are resident and whose modules are named; blocks: its layers, in order. cached: of what
    forward gives, the keys and values that it keeps for later tokens. The first row is the weights; live_bytes is the
    running total with them.
    """
    device = model.device
    recorder = Recorder(device)
    recorder.settle((*model.parameters(), *model.buffers()))
    with recorder.following(model, blocks):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        with recorder:
            out = forward()
        recorder.bury()
    if cached is not None:
        recorder.name_cache(cached(out))
    del out
    recorder.event += 1
    recorder.bury()
    weights = [0, "weights", "", -1, "weight", weight_bytes(model), 0.0]
    columns = [name for name in TIMELINE_COLUMNS if name != "live_bytes"]
    frame = pd.DataFrame([weights, *recorder.rows], columns=columns)
    frame["live_bytes"] = frame["bytes"].cumsum()
    return frame[list(TIMELINE_COLUMNS)]


def peak_activation_bytes(timeline: pd.DataFrame) -> int:
    """The highest total of a timeline less its weights."""
    weights = int(timeline.loc[timeline["category"] == "weight", "bytes"].sum())
    return int(timeline["live_bytes"].max()) - weights


def allocator_peak_bytes(device: torch.device, forward: Callable[[], Any]) -> int:
    """What the CUDA allocator says a forward took at its peak, over what was resident before it."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    forward()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _rounded(count: int, device: torch.device) -> int:
    if device.type != "cuda":
        return count
    return -(-count // _CUDA_BLOCK_BYTES) * _CUDA_BLOCK_BYTES
