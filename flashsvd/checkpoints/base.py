"""What an importer gets and gives: the tensors of a file, the model they belong to, and factors by slot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashsvd.errors import CheckpointError
from flashsvd.models.family import Family
from flashsvd.models.shape import ModelShape

if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Source:
    """A checkpoint as it was read: its tensors, its config.json (None where there is none), and Dobi-SVD's
    `remapping_weight.pt`, which holds more than tensors."""

    path: Path
    tensors: State
    config: Mapping[str, Any] | None = None
    remapped: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Pair:
    """The factors of one slot, W ≈ U·V, block by block.

    u: one [rows, k_g] per group of heads, v: [k_g, in] for each; one of both for a whole matrix. bias [out] or None.
    """

    u: tuple[torch.Tensor, ...]
    v: tuple[torch.Tensor, ...]
    bias: torch.Tensor | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(int(block.shape[0]) for block in self.v)


Pairs = Mapping[tuple[int, str], Pair]
"""Factors by (layer, slot name); a slot that is missing is dense. Layers that share a basis hold the same tensor v."""


@dataclass(frozen=True)
class Target:
    """The architecture that a checkpoint is of: `expected` are the shapes of its dense weights by name, `tied` the
    names that are the same tensor as another."""

    family: Family
    shape: ModelShape
    prefix: str
    expected: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str] = field(default_factory=dict)

    def module(self, layer: int, name: str) -> str:
        """The full path of a slot's linear."""
        return f"{self.prefix}{self.family.path(layer, name)}"

    def has_bias(self, layer: int, name: str) -> bool:
        return f"{self.module(layer, name)}.bias" in self.expected


@dataclass(frozen=True)
class Importer:
    """A published layout.

    `claims(source)` says whether a checkpoint is of this layout; `read(keys, target)` takes its factors out of
    `keys`. `lay_out(target, pairs)` gives factors in this layout, with what its config.json adds; None where nobody
    needs it.
    """

    name: str
    title: str
    source: str
    claims: Callable[[Source], bool]
    read: Callable[[Keys, Target], dict[tuple[int, str], Pair]]
    lay_out: Callable[[Target, Pairs], tuple[dict[str, torch.Tensor], dict[str, Any]]] | None = None


Shape = Sequence[int | str]
"""An expected shape; a letter stands for a size that only the file knows."""


class Keys:
    """The tensors of a checkpoint, taken out one by one. What is missing or of another shape is kept for `check`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.config: Mapping[str, Any] = source.config or {}
        self.left: dict[str, torch.Tensor] = dict(source.tensors)
        self._missing: list[tuple[str, Shape]] = []
        self._misshaped: list[tuple[str, Shape, tuple[int, ...]]] = []

    def __contains__(self, key: str) -> bool:
        return key in self.left

    def any_under(self, path: str) -> bool:
        """Whether there is any tensor of a module or of its children."""
        return any(key.startswith(f"{path}.") for key in self.left)

    def take(self, key: str, shape: Shape, *, optional: bool = False) -> torch.Tensor | None:
        """One tensor, or None where it is missing or misshaped, which `check` reports unless it is optional."""
        tensor = self.left.pop(key, None)
        if tensor is None:
            if not optional:
                self._missing.append((key, shape))
            return None
        received = tuple(tensor.shape)
        if len(received) != len(shape) or any(
            isinstance(size, int) and size != got for size, got in zip(shape, received, strict=True)
        ):
            self._misshaped.append((key, shape, received))
            return None
        return tensor

    def rename(self, key: str, new: str) -> None:
        """Gives a tensor that no slot needs the name that transformers knows it by."""
        if key in self.left:
            self.left[new] = self.left.pop(key)

    def check(self) -> None:
        """Raises CheckpointError that names the first key at fault, how many there are, and the shapes."""
        path = self.source.path
        if self._misshaped:
            key, shape, received = self._misshaped[0]
            raise CheckpointError(
                f"{path}: {_tensors(len(self._misshaped))} of another shape, first {key}: expected {_text(shape)}, "
                f"received {_text(received)}"
            )
        if self._missing:
            key, shape = self._missing[0]
            raise CheckpointError(
                f"{path} lacks {_tensors(len(self._missing))}, first {key}: expected one of {_text(shape)}"
            )


def refuse_extra(path: Path, extra: Mapping[str, torch.Tensor], title: str) -> None:
    """Raises CheckpointError where tensors are left that the model has no place for."""
    if extra:
        key = min(extra)
        raise CheckpointError(
            f"{path} holds {_tensors(len(extra))} that a {title} has no place for, first {key} of "
            f"{_text(tuple(extra[key].shape))}"
        )


def endings(source: Source, suffixes: Iterable[str]) -> bool:
    """Whether any tensor's name ends in one of `suffixes`."""
    wanted = tuple(suffixes)
    return any(key.endswith(wanted) for key in source.tensors)


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def _text(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
