"""Finds out whose layout a checkpoint is in, and takes it apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from flashsvd.checkpoints import importers
from flashsvd.checkpoints.base import Importer, Keys, Pair, Pairs, Source, Target, refuse_extra
from flashsvd.checkpoints.imported import Imported
from flashsvd.checkpoints.reading import read
from flashsvd.checkpoints.target import Base, find_base, make_target, plain_config
from flashsvd.errors import CheckpointError
from flashsvd.factors import LowRank
from flashsvd.models.load import quiet
from flashsvd.models.shape import ModelShape, Slot
from flashsvd.ranks import RankPlan

# Tables that old releases of transformers saved and new ones make.
_TABLES = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", ".position_ids")


def import_checkpoint(
    path: Path | str, *, base: Path | str | None = None, allow_pickle: bool = False
) -> Imported:
    """Reads a checkpoint that another tool compressed; see `flashsvd.checkpoints.layouts` for whose.

    Args:
        path: its folder, or the file of its weights.
        base: the dense model, as a folder or a name: for the configuration where the checkpoint has none, and for
            embeddings, norms and heads that it leaves out.
        allow_pickle: read .bin, .pt and .pth files, by torch's reader of tensors alone.

    Raises:
        CheckpointError: no known layout, or tensors missing, left over, misshaped or not finite; a pickle.
        ModelError: no family is written for the architecture, or no such base.
    """
    source = read(Path(path), allow_pickle=allow_pickle)
    importer = detect(source)
    with quiet():
        lent = find_base(base) if base is not None else None
        config = plain_config(source, lent)
        target, architecture = make_target(source, config)
    keys = Keys(source)
    try:
        pairs = importer.read(keys, target)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source.path}: config.json is malformed for {importer.title}: {error}"
        ) from None
    for (layer, name), pair in pairs.items():
        _check_finite(source, importer, layer, name, pair)
    keys.check()
    shape, groups = _shape(target.shape, pairs)
    for key in [key for key, pair in pairs.items() if max(pair.ranks) > shape.slot(*key).full_rank]:
        _multiply_out(keys, target, *key, pairs.pop(key))
    rest = _rest(keys, target, pairs, lent)
    shape, groups = _shape(target.shape, pairs)
    config.architectures = [architecture]
    # Stored numbers stay as they are: what opens the folder without a dtype gets this one.
    config.dtype = next((pair.u[0].dtype for pair in pairs.values()), torch.float32)
    return Imported(
        method=importer.name,
        family=target.family,
        config=config,
        plan=_plan(shape, pairs),
        factors={key: _low_rank(shape.slot(*key), pair) for key, pair in pairs.items()},
        biases={key: pair.bias for key, pair in pairs.items() if pair.bias is not None},
        rest=rest,
        prefix=target.prefix,
        groups=groups,
        biased=any(pair.bias is not None and not target.has_bias(*key) for key, pair in pairs.items()),
        folders=[
            source.path if source.path.is_dir() else source.path.parent,
            *([lent.folder] if lent and lent.folder else []),
        ],
    )


def detect(source: Source) -> Importer:
    """The one importer that claims a checkpoint.

    Raises:
        CheckpointError: none does, or several do.
    """
    found = [importer for importer in importers().values() if importer.claims(source)]
    if len(found) > 1:
        names = " and ".join(importer.title for importer in found)
        raise CheckpointError(f"{source.path} mixes the layouts of {names}: no published tool writes that")
    if not found:
        known = ", ".join(importer.title for importer in importers().values())
        held = f"first {min(source.tensors)}" if source.tensors else "none"
        raise CheckpointError(
            f"{source.path} is in no layout that is known here: expected one of {known}; it holds "
            f"{len(source.tensors)} tensors, {held}"
        )
    return found[0]


def _rest(keys: Keys, target: Target, pairs: Pairs, base: Base | None) -> dict[str, torch.Tensor]:
    """Everything but the factors, under transformers' names; missing parts of it from `base`."""
    factored = {target.module(layer, name) for layer, name in pairs}
    for name in [name for name in keys.left if name.endswith(_TABLES) and name not in target.expected]:
        del keys.left[name]
    _untie(keys, target)
    lent = _lent(base, keys, target)
    rest = {}
    for name, size in target.expected.items():
        if name in target.tied or name.rpartition(".")[0] in factored:
            continue
        if name not in keys and name in lent:
            rest[name] = lent[name]
            continue
        tensor = keys.take(name, size)
        if tensor is not None:
            rest[name] = tensor
    keys.check()
    refuse_extra(keys.source.path, keys.left, target.family.title)
    return rest


def _untie(keys: Keys, target: Target) -> None:
    """Leaves tied weights under one name."""
    for name, first in target.tied.items():
        if name not in keys:
            continue
        if first not in keys:
            keys.rename(name, first)
            continue
        tensor = keys.left.pop(name)
        if not torch.equal(tensor, keys.left[first]):
            raise CheckpointError(
                f"{keys.source.path}: config.json ties {name} to {first}, but they differ: set tie_word_embeddings "
                "to false"
            )


def _lent(base: Base | None, keys: Keys, target: Target) -> Mapping[str, torch.Tensor]:
    """Weights of the base that no slot is made of: a missing factor is an error, whatever the base holds."""
    slots = {target.module(layer, slot.name) for layer, slot in target.shape}
    missing = {
        name
        for name in target.expected
        if name not in keys and name not in target.tied and name.rpartition(".")[0] not in slots
    }
    if base is None or base.folder is None or not missing:
        return {}
    tensors = read(base.folder).tensors
    return {name: tensors[name] for name in missing if name in tensors}


def _check_finite(source: Source, importer: Importer, layer: int, name: str, pair: Pair) -> None:
    if not all(bool(torch.isfinite(block).all()) for block in (*pair.u, *pair.v)):
        raise CheckpointError(
            f"{source.path}: the {importer.title} factors of L{layer + 1}.{name} hold NaN or infinity"
        )


def _shape(shape: ModelShape, pairs: Pairs) -> tuple[ModelShape, dict[str, tuple[tuple[int, ...], ...]]]:
    """The model's shape, factored as the pairs are, and the layers that share a basis by slot name."""
    groups: dict[str, tuple[tuple[int, ...], ...]] = {}
    sharing: dict[tuple[int, str], int] = {}
    for name in shape.slot_names:
        found: list[list[int]] = []
        for layer in range(len(shape.layers)):
            pair = pairs.get((layer, name))
            before = pairs.get((layer - 1, name))
            if pair is not None and before is not None and pair.v[0] is before.v[0]:
                found[-1].append(layer)
            else:
                found.append([layer])
        if any(len(group) > 1 for group in found):
            groups[name] = tuple(tuple(group) for group in found)
        sharing.update({(layer, name): len(group) for group in found for layer in group})

    def slot(layer: int, slot: Slot) -> Slot:
        pair = pairs.get((layer, slot.name))
        if pair is None:
            return slot
        if len(pair.u) > 1:
            return replace(slot, heads=len(pair.u), per_head=True)
        return replace(slot, per_head=False, sharing=sharing[layer, slot.name])

    layers = tuple(tuple(slot(layer, one) for one in slots) for layer, slots in enumerate(shape.layers))
    return replace(shape, layers=layers), groups


def _multiply_out(keys: Keys, target: Target, layer: int, name: str, pair: Pair) -> None:
    """Puts a dense weight back where factors have more than full rank, as the last layer of Basis Sharing may: the
    weight holds the same in less."""
    path = target.module(layer, name)
    keys.left[f"{path}.weight"] = product(pair)
    if pair.bias is not None:
        keys.left[f"{path}.bias"] = pair.bias


def product(pair: Pair) -> torch.Tensor:
    """The dense weight [out, in], multiplied in float64, or for the halves in float32."""
    wide = torch.float64 if pair.u[0].dtype in (torch.float32, torch.float64) else torch.float32
    blocks = [u.to(wide) @ v.to(wide) for u, v in zip(pair.u, pair.v, strict=True)]
    return torch.cat(blocks).to(pair.u[0].dtype)


def _plan(shape: ModelShape, pairs: Pairs) -> RankPlan:
    def ranks(layer: int, slot: Slot) -> tuple[int | None, ...]:
        pair = pairs.get((layer, slot.name))
        return (None,) * slot.units if pair is None else pair.ranks

    rows = (tuple(ranks(layer, slot) for slot in slots) for layer, slots in enumerate(shape.layers))
    return RankPlan(shape, tuple(rows))


def _low_rank(slot: Slot, pair: Pair) -> LowRank:
    if len(pair.u) > 1:
        return LowRank(torch.cat([block.T for block in pair.u]), torch.cat(pair.v), pair.ranks)
    if not slot.heads:
        return LowRank(pair.u[0], pair.v[0], pair.ranks)
    heads = pair.u[0].unflatten(0, (slot.heads, -1)).transpose(1, 2)
    return LowRank(heads.flatten(0, 1), pair.v[0], pair.ranks * slot.heads, shared=True)


def unpack(slot: Slot, factor: LowRank, bias: torch.Tensor | None = None) -> Pair:
    """The blocks of a slot's factors: what `_low_rank` packs."""
    if not slot.heads:
        return Pair((factor.u,), (factor.v,), bias)
    if factor.shared:
        blocks = factor.u.unflatten(0, (slot.heads, -1)).transpose(1, 2)
        return Pair((blocks.flatten(0, 1),), (factor.v,), bias)
    ranks = list(factor.ranks)
    return Pair(tuple(block.T for block in factor.u.split(ranks)), factor.v.split(ranks), bias)
