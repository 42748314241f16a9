"""The BERT blocks of FlashSVD v1 (arXiv 2508.01506): every block one module that multiplies from the left, x·U·V.

q, k, v per head: `Pq` [H, d, r] (or [1, H, d, r]), `Vq` [H, r, h], `bq`. Feed-forward `U1` [d, r] `V1` [r, w] `b1`,
`U2` `V2` `b2`, output of the attention `Uo` `Vo` `bo_attn`; `ln1` and `ln2` are the norms of the two sublayers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashsvd.checkpoints.base import Importer, Keys, Pair, Source, Target, endings
from flashsvd.errors import CheckpointError
from flashsvd.models.shape import Slot

if TYPE_CHECKING:
    import torch

_PLAIN = {"o": ("Uo", "Vo", "bo_attn"), "up": ("U1", "V1", "b1"), "down": ("U2", "V2", "b2")}
_NORMS = {"ln1": "attention", "ln2": "feed_forward"}


def _claims(source: Source) -> bool:
    return endings(source, (".Pq",))


def _read(keys: Keys, target: Target) -> dict[tuple[int, str], Pair]:
    pairs: dict[tuple[int, str], Pair] = {}
    for layer, slots in enumerate(target.shape.layers):
        if {slot.name for slot in slots} != {"q", "k", "v", *_PLAIN}:
            raise CheckpointError(
                f"{keys.source.path}: blocks of FlashSVD v1 are BERT's, not those of {target.family.title}"
            )
        block = _block(keys, target, layer)
        for slot in slots:
            pair = _per_head(keys, block, slot) if slot.heads else _plain(keys, block, slot)
            if pair is not None:
                pairs[layer, slot.name] = pair
        for short, sublayer in _NORMS.items():
            for part in ("weight", "bias"):
                new = f"{target.prefix}{target.family.norm(layer, sublayer)}.{part}"
                keys.rename(f"{block}{short}.{part}", new)
    return pairs


def _block(keys: Keys, target: Target, layer: int) -> str:
    """What comes before the names of a block: BERT's layer, mostly with the block as its only child."""
    # The path of a slot, as far as it is that of every slot.
    paths = [target.module(layer, slot.name).split(".") for slot in target.shape.layers[layer]]
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    root = ".".join(common) + "."
    nested = f"{root}block."
    return nested if any(key.startswith(nested) for key in keys.left) else root


def _per_head(keys: Keys, block: str, slot: Slot) -> Pair | None:
    heads, width = slot.heads, slot.out_features // slot.heads
    for name in (f"{block}P{slot.name}", f"{block}V{slot.name}"):
        tensor = keys.left.get(name)
        if tensor is not None and tensor.dim() == 4 and tensor.shape[0] == 1:
            keys.left[name] = tensor[0]
    p = keys.take(f"{block}P{slot.name}", (heads, slot.in_features, "r"))
    rank = "r" if p is None else int(p.shape[2])
    v = keys.take(f"{block}V{slot.name}", (heads, rank, width))
    bias = _bias(keys, f"{block}b{slot.name}", slot.out_features)
    if p is None or v is None or bias is None:
        return None
    return Pair(tuple(v.mT.unbind()), tuple(p.mT.unbind()), bias)


def _plain(keys: Keys, block: str, slot: Slot) -> Pair | None:
    first, second, bias_name = (f"{block}{name}" for name in _PLAIN[slot.name])
    u = keys.take(first, (slot.in_features, "r"))
    rank = "r" if u is None else int(u.shape[1])
    v = keys.take(second, (rank, slot.out_features))
    bias = _bias(keys, bias_name, slot.out_features)
    return None if u is None or v is None or bias is None else Pair((v.mT,), (u.mT,), bias)


def _bias(keys: Keys, name: str, size: int) -> torch.Tensor | None:
    """A bias of any shape with so many numbers, such as [1, H, 1, h]."""
    tensor = keys.left.get(name)
    if tensor is not None and tensor.numel() == size:
        keys.left[name] = tensor.reshape(-1)
    return keys.take(name, (size,))


IMPORTER = Importer("flashsvd_v1", "FlashSVD v1", "arXiv 2508.01506", _claims, _read)
