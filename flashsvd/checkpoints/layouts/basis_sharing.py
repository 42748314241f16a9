"""Basis Sharing (arXiv 2410.03765): a linear becomes `X_basis` = V, one for a group of layers, and `X_proj` = U.

The basis stands in every layer of its group and in the model's own table, `model.q_basis.3`; all are one tensor, of
which safetensors keep a single name. `config.q_groups` says which layers share, `config.num_basis_q` their rank.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from flashsvd.checkpoints.base import Importer, Keys, Pair, Pairs, Source, Target
from flashsvd.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_TABLE = re.compile(r"(?:^|\.)([a-z]+)_basis\.(\d+)\.weight$")
_LAYER = re.compile(r"\.layers\.(\d+)\.[\w.]*?([a-z]+)_basis\.weight$")


def _claims(source: Source) -> bool:
    return any(_TABLE.search(key) or _LAYER.search(key) for key in source.tensors)


def _read(keys: Keys, target: Target) -> dict[tuple[int, str], Pair]:
    stored: dict[tuple[str, int], list[str]] = {}
    for key in sorted(keys.left):
        if found := _TABLE.search(key):
            stored.setdefault((found[1], int(found[2])), []).append(key)
        elif found := _LAYER.search(key):
            stored.setdefault((found[2], int(found[1])), []).append(key)
    pairs: dict[tuple[int, str], Pair] = {}
    for name in target.shape.slot_names:
        for place, group in enumerate(_groups(keys, target, name, stored)):
            slot = target.shape.slot(group[0], name)
            names = [key for layer in group for key in stored.get((name, layer), [])]
            first = names[0] if names else f"{target.prefix}{name}_basis.{group[0]}.weight"
            basis = keys.take(first, (_rank(keys, name, place), slot.in_features))
            for other in names[1:]:
                _same(keys, first, basis, other)
            rank = "k" if basis is None else int(basis.shape[0])
            for layer in group:
                path = target.module(layer, name)
                u = keys.take(f"{path}.weight", (slot.out_features, rank))
                bias = keys.take(
                    f"{path}.bias", (slot.out_features,), optional=not target.has_bias(layer, name)
                )
                if u is not None and basis is not None:
                    pairs[layer, name] = Pair((u,), (basis,), bias)
    return pairs


def _groups(
    keys: Keys, target: Target, name: str, stored: dict[tuple[str, int], list[str]]
) -> list[tuple[int, ...]]:
    """The layers of each group, as config.json gives them, or from which layers' tensors are equal."""
    given = keys.config.get(f"{name}_groups")
    count = len(target.shape.layers)
    if given is not None:
        groups = [tuple(int(layer) for layer in group) for group in given]
        layers = sorted(layer for group in groups for layer in group)
        if layers != sorted(set(layers)) or not all(0 <= layer < count for layer in layers):
            raise CheckpointError(
                f"{keys.source.path}: config.{name}_groups is no partition of {count} layers"
            )
        return groups
    found: list[tuple[int, ...]] = []
    for layer in range(count):
        mine = stored.get((name, layer))
        if mine is None:
            # Nothing says that this layer's basis was kept under another one's name.
            if f"num_basis_{name}" in keys.config:
                found.append((layer,))
            continue
        last = stored.get((name, found[-1][-1])) if found else None
        if last and found[-1][-1] == layer - 1 and _equal(keys.left[last[0]], keys.left[mine[0]]):
            found[-1] += (layer,)
        else:
            found.append((layer,))
    return found


def _rank(keys: Keys, name: str, group: int) -> int | str:
    told = keys.config.get(f"num_basis_{name}")
    if isinstance(told, list):
        told = told[group] if group < len(told) else None
    return told if isinstance(told, int) else "k"


def _same(keys: Keys, first: str, basis: torch.Tensor | None, other: str) -> None:
    tensor = keys.left.pop(other)
    if basis is not None and not _equal(tensor, basis):
        raise CheckpointError(
            f"{keys.source.path}: {first} and {other} are to be one basis and are not equal"
        )


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _lay_out(target: Target, pairs: Pairs) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors: dict[str, torch.Tensor] = {}
    config: dict[str, Any] = {}
    for name in target.shape.slot_names:
        groups: list[list[int]] = []
        for (layer, slot_name), pair in pairs.items():
            if slot_name != name:
                continue
            if len(pair.u) > 1:
                raise CheckpointError(
                    f"L{layer + 1}.{name} is factored per head: a shared basis does not hold that"
                )
            if groups and pairs[groups[-1][0], name].v[0] is pair.v[0]:
                groups[-1].append(layer)
            else:
                groups.append([layer])
                tensors[f"{target.prefix}{name}_basis.{layer}.weight"] = pair.v[0]
            path = target.module(layer, name)
            tensors[f"{path}.weight"] = pair.u[0]
            if pair.bias is not None:
                tensors[f"{path}.bias"] = pair.bias
        if groups:
            ranks = [pairs[group[0], name].ranks[0] for group in groups]
            config[f"{name}_groups"] = groups
            config[f"num_basis_{name}"] = ranks[0] if len(set(ranks)) == 1 else ranks
    return tensors, config


IMPORTER = Importer("basis_sharing", "Basis Sharing", "arXiv 2410.03765", _claims, _read, _lay_out)
