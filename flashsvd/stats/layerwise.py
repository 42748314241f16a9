"""One block of a model after another over all the calibration text, hidden states on disk in between.

What is in memory is one block and one batch, however large the model and the text are.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from flashsvd.errors import FlashSVDError, InputError, format_bytes
from flashsvd.models.inputs import Batch
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress
from flashsvd.stats.accumulate import Enough, Taps, evaluating, model_inputs, padding_mask


@dataclass(frozen=True)
class _Reference:
    """A tensor among a block's arguments: its place in the batch's file, and its whole shape where it is expanded."""

    place: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Call:
    """What a block is called with after the hidden states; tensors by reference."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Layer:
    """One block, and every batch as it comes to it.

    The block may be moved to the walk's device before it is run, and given up after `advance`.
    """

    index: int
    block: nn.Module
    _store: _Store
    _progress: Callable[[float], None]
    advanced: bool = False

    def run(self, taps: Taps | None = None, block: nn.Module | None = None) -> None:
        """Runs every batch through the block, or another in its place, and forgets the outputs."""
        self._run(taps, block or self.block, keep=False)

    def advance(self, taps: Taps | None = None, block: nn.Module | None = None) -> None:
        """Runs every batch through the block, or another in its place: the outputs are the next layer's inputs.

        Raises:
            InputError: the disk is full.
        """
        if self.advanced:
            raise FlashSVDError(f"layer L{self.index + 1} has been advanced already: its inputs are gone")
        self._run(taps, block or self.block, keep=True)
        self.advanced = True

    @torch.no_grad()
    def _run(self, taps: Taps | None, block: nn.Module, keep: bool) -> None:
        store = self._store
        with evaluating(block):
            for number in range(store.batches):
                self._progress(number / store.batches)
                hidden, call = store.read(number, self.index)
                if taps:
                    taps.begin(store.mask(number))
                with contextlib.suppress(Enough):
                    out = block(hidden, *call.args, **call.kwargs)
                if taps:
                    taps.end(number)
                if keep:
                    store.write(number, out[0] if isinstance(out, tuple) else out)


def walk(
    loaded: LoadedModel,
    batches: Iterable[Batch],
    *,
    folder: Path | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Iterator[Layer]:
    """Every block in turn. A layer that the caller does not advance is advanced by its dense block.

    A first pass over the batches runs the embeddings alone and notes what each block is called with: masks, rotary
    positions.

    Args:
        folder: where hidden states are kept while this lasts, [tokens, hidden] in the model's dtype and the masks; the
            system's temporary folder by default.
        device: where the batches come to the blocks; the model's own by default.

    Raises:
        InputError: no batches, or no room in the folder.
        FlashSVDError: blocks that do not take each other's output.
    """
    listed = list(batches)
    blocks = loaded.family.layers(loaded.model.base_model)
    with tempfile.TemporaryDirectory(dir=folder, prefix="flashsvd-hidden-") as name:
        store = _Store(Path(name), listed, device or loaded.device)
        _record(loaded, blocks, store, progress)
        for index, block in enumerate(blocks):
            layer = Layer(index, block, store, _within(progress, index, len(blocks)))
            yield layer
            if not layer.advanced:
                layer.advance()
    if progress:
        progress(_stage(len(blocks) - 1, len(blocks)), 1.0)


def _stage(index: int, count: int) -> str:
    return f"Layer {index + 1} of {count}"


def _within(progress: Progress | None, index: int, count: int) -> Callable[[float], None]:
    def tell(share: float) -> None:
        if progress:
            progress(_stage(index, count), (index + share) / count)

    return tell


class _Store:
    """Hidden states and block arguments, one file each per batch, read and written one at a time."""

    def __init__(self, folder: Path, batches: list[Batch], device: torch.device) -> None:
        if not batches:
            raise InputError("the calibration text has no batches: give at least one")
        self._folder, self._device, self.texts = folder, device, batches
        self._calls: list[list[_Call]] = []
        self.batches = len(batches)

    def mask(self, number: int) -> torch.Tensor:
        return padding_mask(self.texts[number], number, self._device)

    def begin(self, hidden: torch.Tensor, calls: list[_Call], tensors: list[torch.Tensor]) -> None:
        """Adds the next batch, as it comes to the first block."""
        number = len(self._calls)
        self._calls.append(calls)
        self.write(number, hidden)
        self._save(f"arguments-{number}", {str(place): tensor for place, tensor in enumerate(tensors)})

    def write(self, number: int, hidden: torch.Tensor) -> None:
        self._save(f"hidden-{number}", {"hidden": hidden})

    def read(self, number: int, layer: int) -> tuple[torch.Tensor, _Call]:
        hidden = self._load(f"hidden-{number}")["hidden"]
        tensors = self._load(f"arguments-{number}")
        call = self._calls[number][layer]

        def fill(reference: _Reference) -> torch.Tensor:
            return tensors[str(reference.place)].expand(reference.shape)

        args, kwargs = _mapped((call.args, call.kwargs), _Reference, fill)
        return hidden, _Call(args, kwargs)

    def _load(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self._folder / f"{name}.safetensors", device=str(self._device))

    def _save(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        # Not over the old file: what was read of it may still be mapped into memory.
        part, file = self._folder / f"{name}.part", self._folder / f"{name}.safetensors"
        try:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, part)
            part.replace(file)
        except (OSError, SafetensorError) as error:
            size = format_bytes(sum(tensor.nbytes for tensor in tensors.values()) * self.batches)
            raise InputError(
                f"no room for the hidden states in {self._folder.parent} ({error}): they take about {size}; "
                "free some space or give another folder"
            ) from None


class _Recorded(Exception):
    """Ends a forward pass at the last block."""


class _NotChained(Exception):
    """A block did not get what the one before it returned."""


def _record(loaded: LoadedModel, blocks: list[nn.Module], store: _Store, progress: Progress | None) -> None:
    """Runs every batch through the embeddings, and through blocks that only write down what they get."""
    model = loaded.model.base_model
    as_tuple = False
    for number in range(store.batches):
        if progress:
            progress("Reading the calibration text", number / store.batches)
        inputs = model_inputs(model, store.texts[number], loaded.device)
        try:
            hidden, calls, tensors = _recorded(model, blocks, inputs, as_tuple)
        except _NotChained:
            # Whether blocks return their output or a tuple of it, only their model knows: it is tried out once.
            as_tuple = not as_tuple
            try:
                hidden, calls, tensors = _recorded(model, blocks, inputs, as_tuple)
            except _NotChained:
                raise FlashSVDError(
                    f"the blocks of {loaded.family.title} do not take each other's outputs, so they cannot be run "
                    "one by one: leave low_memory out"
                ) from None
        store.begin(hidden, calls, tensors)


@torch.no_grad()
def _recorded(
    model: nn.Module, blocks: list[nn.Module], inputs: dict[str, Any], as_tuple: bool
) -> tuple[torch.Tensor, list[_Call], list[torch.Tensor]]:
    """The hidden states before the first block, the calls of all blocks, and the tensors that those refer to."""
    calls: list[_Call] = []
    tensors: list[torch.Tensor] = []
    places: dict[int, int] = {}
    seen: list[torch.Tensor] = []
    # Tensors must not be freed while their ids are compared.
    alive: list[torch.Tensor] = []

    def refer(tensor: torch.Tensor) -> _Reference:
        if id(tensor) not in places:
            places[id(tensor)] = len(tensors)
            alive.append(tensor)
            # What is expanded (a mask over all queries) is kept at its own size.
            own = tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())
            tensors.append(tensor[own] if own else tensor)
        return _Reference(places[id(tensor)], tuple(tensor.shape))

    def record(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.pop("hidden_states")
        if seen and hidden is not seen[0]:
            raise _NotChained
        if not seen:
            seen.append(hidden)
        calls.append(_Call(*_mapped((tuple(args[1:]), kwargs), torch.Tensor, refer)))
        if len(calls) == len(blocks):
            raise _Recorded
        return (hidden,) if as_tuple else hidden

    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = record
        with evaluating(model), contextlib.suppress(_Recorded):
            model(**inputs)
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward
    if len(calls) != len(blocks):
        raise _NotChained
    return seen[0], calls, tensors


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The same tuples, lists and dicts with every object of a kind changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(one, kind, change) for key, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(one, kind, change) for one in value)
    return value
