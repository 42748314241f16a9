"""ASVD (arXiv 2312.05821): `X.BLinear` = V, then `X.ALinear` = U with the bias; `config.truncation_ranks`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashsvd.checkpoints.base import Importer, Keys, Pair, Pairs, Source, Target
from flashsvd.checkpoints.two_linears import a_linear, b_linear, lay_out_two, order, read_two
from flashsvd.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def _claims(source: Source) -> bool:
    return order(source) == "asvd"


def _read(keys: Keys, target: Target) -> dict[tuple[int, str], Pair]:
    pairs = read_two(keys, target, a_linear, b_linear)
    told = keys.config.get("truncation_ranks") or {}
    for (layer, name), pair in pairs.items():
        path = target.module(layer, name)
        rank = told.get(path, pair.ranks[0])
        if rank != pair.ranks[0]:
            raise CheckpointError(
                f"{keys.source.path}: config.truncation_ranks gives {path} rank {rank}, its factors have "
                f"{pair.ranks[0]}"
            )
    return pairs


def _lay_out(target: Target, pairs: Pairs) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    ranks = {target.module(layer, name): pair.ranks[0] for (layer, name), pair in pairs.items()}
    return lay_out_two(target, pairs, a_linear, b_linear), {"truncation_ranks": ranks}


IMPORTER = Importer("asvd", "ASVD", "arXiv 2312.05821", _claims, _read, _lay_out)
