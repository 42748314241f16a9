"""The linear of a slot, also where a model computes several slots with one, or holds its weight the other way round."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from flashsvd.models.family import Family
from flashsvd.models.shape import ModelShape

LINEARS = (nn.Linear, Conv1D)
"""What a dense model computes its linears with; the weight of a Conv1D is [in, out]."""


def linear_of(base_model: nn.Module, family: Family, shape: ModelShape, layer: int, name: str) -> nn.Module:
    """The module that computes a slot, in a dense model or in one whose linears are exchanged.

    Where that is a fused linear or a Conv1D, an nn.Linear that holds views of the slot's rows: writing to them writes
    to the model.
    """
    owner_path, _, leaf = family.path(layer, name).rpartition(".")
    owner = base_model.get_submodule(owner_path)
    if not isinstance(owner, LINEARS):
        module = owner.get_submodule(leaf)
        return _linear(weight_rows(module), module.bias.detach()) if isinstance(module, Conv1D) else module
    sizes = fused_sizes(family, shape, layer, name)
    return dict(zip(sizes, split_rows(owner, list(sizes.values())), strict=True))[name]


def fused_sizes(family: Family, shape: ModelShape, layer: int, name: str) -> dict[str, int]:
    """Outputs of every slot of the fused linear that a slot is part of, in the order of its rows."""
    group = next(group for group in family.fused if name in group)
    return {member: shape.slot(layer, member).out_features for member in group}


def split_rows(linear: nn.Linear | Conv1D, sizes: Sequence[int]) -> list[nn.Linear]:
    """Linears of `sizes` outputs that together are the one given; they hold views of its weight and bias."""
    weights = weight_rows(linear).split(list(sizes))
    biases = [None] * len(weights) if linear.bias is None else list(linear.bias.detach().split(list(sizes)))
    return [_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def weight_rows(linear: nn.Linear | Conv1D) -> torch.Tensor:
    """The weight of a linear as [out, in]: its own memory."""
    weight = linear.weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight


def lay_out_rows(base_model: nn.Module, family: Family, layer: int, name: str) -> None:
    """Puts the weight of a slot that is dense in memory row by row of [out, in], as kernels read it. A Conv1D keeps its
    shape and what it computes."""
    path = family.path(layer, name)
    owner = base_model.get_submodule(path.rpartition(".")[0])
    module = owner if isinstance(owner, LINEARS) else base_model.get_submodule(path)
    if isinstance(module, LINEARS) and not (rows := weight_rows(module)).is_contiguous():
        rows = rows.contiguous()
        module.weight = nn.Parameter(rows.T if isinstance(module, Conv1D) else rows, requires_grad=False)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    out_features, in_features = weight.shape
    part = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    part.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        part.bias = nn.Parameter(bias, requires_grad=False)
    return part
