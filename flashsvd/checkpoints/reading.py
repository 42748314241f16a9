"""Reads the tensors of a checkpoint that somebody else wrote; nothing in the file is ever executed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flashsvd.checkpoints.base import Source
from flashsvd.errors import CheckpointError

_PICKLES = (".bin", ".pt", ".pth")
_REMAPPED = "remapping_weight.pt"
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def read(path: Path, *, allow_pickle: bool = False) -> Source:
    """A folder or a file of tensors, and the config.json beside it.

    Safetensors in one file or in shards. A pickle only with `allow_pickle`, and then by torch's reader that builds
    tensors and plain containers and nothing else.

    Raises:
        CheckpointError: nothing there to read, files missing, truncated or corrupt, a pickle without leave, or one
            that holds a whole module.
    """
    if not path.exists():
        raise CheckpointError(f"{path} is not there: give a checkpoint's folder or file")
    folder = path if path.is_dir() else path.parent
    files = _files(path)
    pickles = [file for file in files if file.suffix in _PICKLES]
    if pickles and not allow_pickle:
        raise CheckpointError(
            f"{pickles[0]} is a pickle, which can run code when it is opened: pass --allow-pickle to read its tensors "
            "alone, or save it as safetensors"
        )
    tensors: dict[str, torch.Tensor] = {}
    remapped = None
    for file in files:
        if file.name == _REMAPPED:
            remapped = _unpickle(file)
            continue
        found = _state(file, _unpickle(file)) if file.suffix in _PICKLES else _safetensors(file)
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise CheckpointError(f"{file} holds {twice[0]}, which another file of {folder} holds too")
        tensors.update(found)
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_quantized:
            raise CheckpointError(
                f"{path}: {name} is no plain tensor of numbers ({tensor.dtype}): save it dense"
            )
    return Source(path, tensors, _config(folder), remapped)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix not in (".safetensors", *_PICKLES):
            raise CheckpointError(f"{path} is no checkpoint: expected .safetensors, {', '.join(_PICKLES)}")
        return [path]
    # A folder may hold the same weights twice, as safetensors and as a pickle.
    for pattern in ("*.safetensors.index.json", "*.bin.index.json"):
        for index in sorted(path.glob(pattern)):
            return _with_remapped(path, _shards(index))
    files = sorted(path.glob("*.safetensors")) or sorted(
        file for file in path.iterdir() if file.suffix in _PICKLES and file.name != _REMAPPED
    )
    if not files and not (path / _REMAPPED).is_file():
        raise CheckpointError(
            f"{path} holds no .safetensors, .bin, .pt or .pth file: give a checkpoint's folder"
        )
    return _with_remapped(path, files)


def _with_remapped(folder: Path, files: list[Path]) -> list[Path]:
    remapped = folder / _REMAPPED
    return [*files, remapped] if remapped.is_file() else files


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is no index of shards ({error!r}): fetch it again") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which is no file beside it: fetch it again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of {len(names)} shards, first {missing[0]}"
        )
    return [index.parent / name for name in names]


def _safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or corrupt ({error}); fetch or save it again") from None


def _unpickle(file: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} holds more than tensors, such as a whole module, and is not opened: where it was made, save the "
            "module's state_dict() with safetensors.torch.save_file"
        ) from None
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
    ) as error:
        words = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"{file} is truncated or corrupt ({words}); fetch or save it again") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}: expected a state_dict")
    return content


def _state(file: Path, content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    for name in _WRAPPERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    other = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if other or not content:
        what = f"{other[0]!r}, a {type(content[other[0]]).__name__}" if other else "nothing"
        raise CheckpointError(f"{file} holds {what}: expected a state_dict of tensors alone")
    return {str(key): value.detach() for key, value in content.items()}


def _config(folder: Path) -> Mapping[str, Any] | None:
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a model configuration ({error!r}); fetch it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is not a model configuration: expected an object; fetch it again")
    return config
