"""Layouts that put two linears in the place of one: U [out, k] with the bias, V [k, in]."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from flashsvd.checkpoints.base import Keys, Pair, Pairs, Source, Target
from flashsvd.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Name = Callable[[str], str]
"""The path of a linear in the dense model -> that of one of its two factors."""


def read_two(keys: Keys, target: Target, left: Name, right: Name) -> dict[tuple[int, str], Pair]:
    """The factors of every slot that does not have its dense weight."""
    pairs = {}
    for layer, slot in target.shape:
        path = target.module(layer, slot.name)
        u_path, v_path = left(path), right(path)
        halves = f"{u_path}.weight" in keys or f"{v_path}.weight" in keys
        if f"{path}.weight" in keys and not halves:
            continue
        u = keys.take(f"{u_path}.weight", (slot.out_features, "k"))
        rank = "k" if u is None else int(u.shape[1])
        v = keys.take(f"{v_path}.weight", (rank, slot.in_features))
        bias = keys.take(
            f"{u_path}.bias", (slot.out_features,), optional=not target.has_bias(layer, slot.name)
        )
        if u is not None and v is not None:
            pairs[layer, slot.name] = Pair((u,), (v,), bias)
    return pairs


def lay_out_two(target: Target, pairs: Pairs, left: Name, right: Name) -> dict[str, torch.Tensor]:
    """What `read_two` reads.

    Raises:
        CheckpointError: factors of groups of heads, which two linears cannot hold without growing.
    """
    tensors = {}
    for (layer, name), pair in pairs.items():
        if len(pair.u) > 1:
            raise CheckpointError(f"L{layer + 1}.{name} is factored per head: two linears do not hold that")
        path = target.module(layer, name)
        tensors[f"{left(path)}.weight"] = pair.u[0]
        tensors[f"{right(path)}.weight"] = pair.v[0]
        if pair.bias is not None:
            tensors[f"{left(path)}.bias"] = pair.bias
    return tensors


def a_linear(path: str) -> str:
    return f"{path}.ALinear"


def b_linear(path: str) -> str:
    return f"{path}.BLinear"


Order = Literal["asvd", "dobi"]


def order(source: Source) -> Order | None:
    """Whose ALinear and BLinear a file holds: ASVD runs BLinear first, Dobi-SVD ALinear. None where it holds none.

    Every pair that is not square on both sides decides by its shapes; where all are, `config.truncation_ranks`, which
    only ASVD writes, does.

    Raises:
        CheckpointError: the pairs contradict each other, or nothing tells.
    """
    ends = ".ALinear.weight"
    found: dict[Order, str] = {}
    pairs = 0
    for key in sorted(source.tensors):
        a, b = source.tensors[key], source.tensors.get(key.removesuffix(ends) + ".BLinear.weight")
        if not key.endswith(ends):
            continue
        pairs += 1
        if b is None or a.dim() != 2 or b.dim() != 2:
            continue
        able = _orders(tuple(a.shape), tuple(b.shape))
        if len(able) == 1:
            found.setdefault(able[0], key)
    if len(found) == 2:
        raise CheckpointError(
            f"{source.path}: {found['asvd']} is the second of its two linears, {found['dobi']} the first: no published "
            "layout mixes them"
        )
    if found:
        return next(iter(found))
    if not pairs:
        return None
    if source.config and "truncation_ranks" in source.config:
        return "asvd"
    raise CheckpointError(
        f"{source.path}: the shapes do not tell whether ALinear or BLinear comes first: put truncation_ranks into "
        "config.json where it is ASVD's"
    )


def _orders(a: tuple[int, ...], b: tuple[int, ...]) -> list[Order]:
    """Which of U = A and U = B multiply to a matrix of no less than their rank.

    >>> _orders((64, 9), (9, 64)), _orders((9, 64), (64, 9)), _orders((64, 64), (64, 64))
    (['asvd'], ['dobi'], ['asvd', 'dobi'])
    """
    able: list[Order] = []
    if a[1] == b[0] and a[1] <= min(a[0], b[1]):
        able.append("asvd")
    if b[1] == a[0] and b[1] <= min(b[0], a[1]):
        able.append("dobi")
    return able
