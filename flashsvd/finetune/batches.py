"""Training examples by seed and position alone: a resumed run sees what it would have seen."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.errors import InputError
from flashsvd.tasks.base import Examples

_POOL = 16


@dataclass(frozen=True)
class EncodedExamples:
    """Token ids, token types and which tokens are special, one row an example; labels are class indices or targets."""

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...] | None
    special: tuple[tuple[int, ...], ...]
    labels: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.ids)


def encode(examples: Examples, tokenizer: Any, max_length: int) -> EncodedExamples:
    """Tokenises texts, or pairs of texts, cut at `max_length` tokens, special ones included.

    Raises:
        InputError: there are no examples, or they have no labels.
    """
    if not len(examples) or examples.labels is None:
        raise InputError("there is nothing to train on: expected at least one example, with labels")
    found = tokenizer(
        list(examples.first),
        list(examples.second) if examples.second is not None else None,
        truncation=True,
        max_length=max_length,
        return_special_tokens_mask=True,
    )
    types = found.get("token_type_ids")
    return EncodedExamples(
        tuple(map(tuple, found["input_ids"])),
        None if types is None else tuple(map(tuple, types)),
        tuple(map(tuple, found["special_tokens_mask"])),
        tuple(examples.labels),
    )


class TrainingOrder(torch.utils.data.Dataset[dict[str, Any]]):
    """Every example of every step of a run, in order: item i is the same in every process and needs none before it.

    An epoch is a permutation, batches hold texts of like length, and each text is cropped and masked anew each time:
    of every run of tokens that are not special a random stretch is kept, at least `crop` of it, and of what is left a
    share of `mask` becomes the mask token.
    """

    def __init__(
        self,
        examples: EncodedExamples,
        *,
        steps: int,
        batch: int,
        seed: int,
        mask: float = 0.0,
        crop: float = 1.0,
        mask_id: int | None = None,
    ) -> None:
        if mask and mask_id is None:
            raise InputError("this tokenizer has no mask token: leave mask out, or give mask 0")
        self._examples = examples
        self._seed, self._mask, self._crop, self._mask_id = seed, mask, crop, mask_id
        lengths = torch.tensor([len(row) for row in examples.ids])
        self._order = _order(lengths, steps, batch, seed)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        row = int(self._order[position])
        examples = self._examples
        ids, types = examples.ids[row], None if examples.types is None else examples.types[row]
        # A str is hashed the same way in every process.
        draw = random.Random(f"{self._seed}:{position}")
        kept = _stretches(examples.special[row], self._crop, draw)
        special = examples.special[row]
        item: dict[str, Any] = {
            "input_ids": [
                self._mask_id if self._mask and not special[at] and draw.random() < self._mask else ids[at]
                for at in kept
            ],
            "labels": examples.labels[row],
        }
        if types is not None:
            item["token_type_ids"] = [types[at] for at in kept]
        return item


def _order(lengths: torch.Tensor, steps: int, batch: int, seed: int) -> torch.Tensor:
    """Rows of all steps, [steps · batch]: permutations end to end, in each pool of batches sorted by length."""
    generator = torch.Generator().manual_seed(seed)
    wanted, have = steps * batch, 0
    epochs = []
    while have < wanted:
        epochs.append(torch.randperm(len(lengths), generator=generator))
        have += len(lengths)
    rows = torch.cat(epochs)[:wanted]
    out = []
    for pool in rows.split(_POOL * batch):
        batches = pool[lengths[pool].argsort(stable=True)].split(batch)
        out += [batches[at] for at in torch.randperm(len(batches), generator=generator).tolist()]
    return torch.cat(out)


def _stretches(special: Sequence[int], crop: float, draw: random.Random) -> list[int]:
    """Positions that are kept: all special tokens, and of each run between them a stretch of at least `crop`."""
    if crop == 1:
        return list(range(len(special)))
    kept, start = [], 0
    while start < len(special):
        if special[start]:
            kept.append(start)
            start += 1
            continue
        end = start
        while end < len(special) and not special[end]:
            end += 1
        length = max(1, round((end - start) * draw.uniform(crop, 1.0)))
        first = draw.randint(start, end - length)
        kept += range(first, first + length)
        start = end
    return kept


def collator(pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Pads items on the right to the longest: input_ids, attention_mask, perhaps token_type_ids [B, S], labels [B]."""

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(item["input_ids"]) for item in items)

        def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([row + [fill] * (width - len(row)) for row in rows])

        ids = [item["input_ids"] for item in items]
        out = {
            "input_ids": padded(ids, pad_id),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": torch.tensor([item["labels"] for item in items]),
        }
        if "token_type_ids" in items[0]:
            out["token_type_ids"] = padded([item["token_type_ids"] for item in items], 0)
        return out

    return collate
