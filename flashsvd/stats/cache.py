"""Statistics on disk: by content hash, one file per layer, so that one layer at a time can be read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from flashsvd.errors import CheckpointError, InputError, format_bytes
from flashsvd.models.inputs import Batch
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import ModelShape
from flashsvd.stats.accumulate import input_name
from flashsvd.stats.base import NEEDS, InputStats, Need

_FORMAT = "statistics/1"
_LIMIT_BYTES = 16 * 2**30
_KEPT_INPUTS = 4
"""Inputs that a reader of one layer after another has in memory: those of one layer."""

_NOT_THE_FUNCTION = {"transformers_version", "_name_or_path", "name_or_path"}


def digests(loaded: LoadedModel, batches: Sequence[Batch]) -> Digests:
    """Hashes what statistics depend on: a model's weights and configuration, and the batches."""
    config = {
        key: value for key, value in loaded.model.config.to_dict().items() if key not in _NOT_THE_FUNCTION
    }
    model = hashlib.sha256(f"{_FORMAT} {type(loaded.model).__name__}".encode())
    model.update(json.dumps(config, sort_keys=True, default=str).encode())
    model.update(_tensors_digest(loaded.model.state_dict()))
    text, labels = hashlib.sha256(), hashlib.sha256()
    for batch in batches:
        text.update(_tensors_digest({name: value for name, value in batch.items() if name != "labels"}))
        labels.update(_tensors_digest({name: value for name, value in batch.items() if name == "labels"}))
    return Digests(model.digest() + text.digest(), labels.digest(), loaded.shape.per_head)


class Digests:
    """The content hash of every set of needs over one model and its batches.

    Labels, and whether q, k and v are taken head by head, count for fisher alone: nothing else depends on them.
    """

    def __init__(self, inputs: bytes, labels: bytes, per_head: bool) -> None:
        self._inputs = inputs
        self._gradients = labels + bytes([per_head])

    def of(self, needs: Iterable[Need]) -> str:
        wanted = sorted(needs)
        gradients = self._gradients if "fisher" in wanted else b""
        return hashlib.sha256(self._inputs + gradients + " ".join(wanted).encode()).hexdigest()[:32]

    def of_supersets(self, needs: frozenset[Need]) -> list[tuple[str, frozenset[Need]]]:
        """Every set that holds these needs, with its hash: the smallest first."""
        others = [need for need in NEEDS if need not in needs]
        sets = [needs | set(more) for count in range(len(others) + 1) for more in combinations(others, count)]
        return [(self.of(each), each) for each in sets]


def _tensors_digest(tensors: Mapping[str, torch.Tensor]) -> bytes:
    def one(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        digest = hashlib.sha256(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.digest()

    items = sorted(tensors.items())
    # hashlib lets go of the interpreter's lock: threads hash a large model several times as fast.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return hashlib.sha256(b"".join(pool.map(one, items))).digest()


def _file(folder: Path, key: str, layer: int) -> Path:
    return folder / f"{key}.{layer:04d}.safetensors"


class StoredStats(Mapping[tuple[int, str], InputStats]):
    """The statistics of every slot, read from their files when they are asked for, a few inputs at a time.

    Slots that share an input hold the same tensors as long as they are read one after another. Raises
    CheckpointError where a file has gone or is corrupt.
    """

    def __init__(
        self, folder: Path, key: str, shape: ModelShape, needs: frozenset[Need], device: torch.device
    ) -> None:
        self._folder, self._key, self._shape = folder, key, shape
        self._needs, self._device = needs, device
        self._kept: OrderedDict[tuple[int, str], dict[str, torch.Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return sum(1 for _ in self._shape)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return ((layer, slot.name) for layer, slot in self._shape)

    def _names(self, layer: int) -> set[str]:
        return {slot.name for slot in self._shape.layers[layer]}

    def __getitem__(self, key: tuple[int, str]) -> InputStats:
        layer, name = key
        if not 0 <= layer < len(self._shape.layers) or name not in self._names(layer):
            raise KeyError(key)
        source = input_name(self._shape.layers[layer], name)
        try:
            with safe_open(
                _file(self._folder, self._key, layer), framework="pt", device=str(self._device)
            ) as file:
                if (layer, source) not in self._kept:
                    found: dict[str, torch.Tensor] = {}
                    for need in self._needs - {"fisher"}:
                        found[need] = file.get_tensor(f"{source}.{need}")
                    self._kept[layer, source] = found
                    while len(self._kept) > _KEPT_INPUTS:
                        self._kept.popitem(last=False)
                fisher = file.get_tensor(f"{name}.fisher") if "fisher" in self._needs else None
                tokens = int(file.metadata()["tokens"])
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"the statistics of L{layer + 1}.{name} cannot be read from {self._folder} ({error}): "
                "collect them again"
            ) from None
        return InputStats(tokens, fisher=fisher, **self._kept[layer, source])


def find(
    folder: Path, hashes: Digests, shape: ModelShape, needs: frozenset[Need], device: torch.device
) -> StoredStats | None:
    """The stored statistics with these needs or more; None where a file is missing or cut off."""
    for key, _ in hashes.of_supersets(needs):
        try:
            for layer in range(len(shape.layers)):
                with safe_open(_file(folder, key, layer), framework="pt") as file:
                    file.keys()
        except (SafetensorError, OSError):
            continue
        with contextlib.suppress(OSError):
            for layer in range(len(shape.layers)):
                os.utime(_file(folder, key, layer))
        return StoredStats(folder, key, shape, needs, device)
    return None


def write_layer(
    folder: Path, key: str, shape: ModelShape, layer: int, stats: Mapping[str, InputStats]
) -> None:
    """One layer's statistics by slot name, what slots share once. Under a temporary name first.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    tensors = {}
    for name, one in stats.items():
        for need in NEEDS:
            owner = name if need == "fisher" else input_name(shape.layers[layer], name)
            tensor = getattr(one, need)
            if tensor is not None:
                tensors[f"{owner}.{need}"] = tensor.contiguous()
    tokens = next(iter(stats.values())).tokens
    try:
        save_atomically(tensors, _file(folder, key, layer), {"tokens": str(tokens)})
    except (OSError, SafetensorError) as error:
        size = format_bytes(sum(tensor.nbytes for tensor in tensors.values()))
        raise InputError(
            f"the statistics of L{layer + 1} ({size}) cannot be written to {folder} ({error}): "
            "free some space or give another cache folder"
        ) from None


def save_atomically(
    tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file that is there whole or not at all. Raises OSError or SafetensorError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        name = Path(part.name)
    try:
        save_file(tensors, name, metadata)
        name.replace(file)
    finally:
        name.unlink(missing_ok=True)


def trim(folder: Path, keep: str) -> None:
    """Drops the statistics unused for longest until the cache is within its limit; never those of `keep`."""
    entries: dict[str, list[Path]] = {}
    with contextlib.suppress(OSError):
        for file in folder.glob("*.safetensors"):
            entries.setdefault(file.name.partition(".")[0], []).append(file)
        total = sum(file.stat().st_size for file in entries.pop(keep, []))
        age = {key: max(file.stat().st_mtime for file in files) for key, files in entries.items()}
        for key in sorted(entries, key=age.__getitem__, reverse=True):
            total += sum(file.stat().st_size for file in entries[key])
            if total > _LIMIT_BYTES:
                drop(folder, key)


def drop(folder: Path, key: str) -> None:
    """Removes the files of one entry."""
    with contextlib.suppress(OSError):
        for file in folder.glob(f"{key}.*.safetensors"):
            file.unlink(missing_ok=True)
