"""Palu (arXiv 2407.21118): `k_proj.VT` = the V of all groups of heads, stacked, and `k_proj.U.g` = each group's U.

`config.head_wise_ranks` lists the ranks of the groups by linear. One group is a whole matrix.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from flashsvd.checkpoints.base import Importer, Keys, Pair, Pairs, Source, Target, endings
from flashsvd.errors import CheckpointError
from flashsvd.models.shape import Slot

if TYPE_CHECKING:
    import torch


def _claims(source: Source) -> bool:
    return endings(source, (".VT.weight",))


def _read(keys: Keys, target: Target) -> dict[tuple[int, str], Pair]:
    told = keys.config.get("head_wise_ranks") or {}
    pairs = {}
    for layer, slot in target.shape:
        path = target.module(layer, slot.name)
        if path not in told and not any(keys.any_under(f"{path}.{child}") for child in ("VT", "U", "U_list")):
            continue
        # The runtime of the paper saves its list of linears under another name.
        child = "U_list" if keys.any_under(f"{path}.U_list") else "U"
        ranks: list[int | str] = list(told.get(path) or _ranks(keys, f"{path}.{child}"))
        groups = len(ranks)
        _check_groups(keys, slot, groups, path)
        rows = slot.out_features // max(groups, 1)
        blocks, biases = [], []
        for group, rank in enumerate(ranks):
            name = f"{path}.{child}.{group}"
            blocks.append(keys.take(f"{name}.weight", (rows, rank)))
            biases.append(keys.take(f"{name}.bias", (rows,), optional=not target.has_bias(layer, slot.name)))
        u = [block for block in blocks if block is not None]
        widths = [int(block.shape[1]) for block in u]
        total: int | str = sum(widths) if len(u) == groups else "R"
        v = keys.take(f"{path}.VT.weight", (total, slot.in_features))
        if v is not None and len(u) == groups:
            pairs[layer, slot.name] = Pair(tuple(u), v.split(widths), _bias(biases))
    return pairs


def _ranks(keys: Keys, path: str) -> list[int]:
    """Ranks by the blocks that are there, as far as they are numbered without a gap; one where there is none."""
    ranks: list[int] = []
    for group in itertools.count():
        block = keys.left.get(f"{path}.{group}.weight")
        if block is None or block.dim() != 2:
            return ranks or [1]
        ranks.append(int(block.shape[1]))
    raise AssertionError


def _check_groups(keys: Keys, slot: Slot, groups: int, path: str) -> None:
    if groups > 1 and (not slot.heads or slot.heads % groups):
        heads = f"{slot.heads} heads" if slot.heads else "a linear without heads"
        raise CheckpointError(
            f"{keys.source.path}: {path} has {groups} groups, which {heads} cannot be divided into"
        )


def _bias(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    import torch

    given = [part for part in parts if part is not None]
    return torch.cat(given) if given and len(given) == len(parts) else None


def _lay_out(target: Target, pairs: Pairs) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    import torch

    tensors = {}
    ranks = {}
    for (layer, name), pair in pairs.items():
        path = target.module(layer, name)
        ranks[path] = list(pair.ranks)
        tensors[f"{path}.VT.weight"] = torch.cat(pair.v)
        for group, block in enumerate(pair.u):
            tensors[f"{path}.U.{group}.weight"] = block
            if pair.bias is not None:
                tensors[f"{path}.U.{group}.bias"] = pair.bias.chunk(len(pair.u))[group]
    return tensors, {"head_wise_ranks": ranks}


IMPORTER = Importer("palu", "Palu", "arXiv 2407.21118", _claims, _read, _lay_out)
