"""Examples -> token ids -> batches that a model takes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flashsvd.errors import InputError
from flashsvd.models.load import LoadedModel
from flashsvd.tasks.base import Examples
from flashsvd.tasks.labels import is_classifier

LONGEST = 2048
"""Tokens of a text that are looked at by default, of models with room for more."""


@dataclass(frozen=True)
class Encoded:
    """Token ids, one row an example, special tokens included; token types where the tokenizer gives them."""

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...] | None
    labels: tuple[int, ...] | tuple[float, ...] | None

    def __len__(self) -> int:
        return len(self.ids)


def encode(examples: Examples, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenises texts, or pairs of texts, cut at `max_length` tokens.

    Raises:
        InputError: there are no examples, or one gives no token.
    """
    if not len(examples):
        raise InputError("there are no examples to tokenise: expected at least one")
    found = tokenizer(
        list(examples.first),
        list(examples.second) if examples.second is not None else None,
        truncation=True,
        max_length=max_length,
    )
    ids = tuple(map(tuple, found["input_ids"]))
    empty = next((row for row, tokens in enumerate(ids) if not tokens), None)
    if empty is not None:
        raise InputError(f"text {empty + 1} gives no token: {examples.first[empty][:40]!r}; remove it")
    types = found.get("token_type_ids")
    return Encoded(ids, None if types is None else tuple(map(tuple, types)), examples.labels)


def batches(
    examples: Examples, loaded: LoadedModel, batch: int, *, max_length: int | None = None
) -> list[dict[str, torch.Tensor]]:
    """Batches of like length, padded on the right, on the CPU.

    Each holds input_ids and attention_mask [B, S]; token_type_ids [B, S] where the tokenizer gives them and the model
    takes them; labels [B] (int64, or float32 for a regression) where there are any and the model gives labels to
    sequences. max_length: at most the model's positions; 2048 by default, or those positions where they are fewer.

    Raises:
        InputError: no tokenizer, no examples, or a number out of range.
    """
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    positions = loaded.shape.max_positions
    if max_length is not None and not 1 <= max_length <= positions:
        raise InputError(
            f"max_length must be from 1 to {positions} (the positions of {loaded.name}), got {max_length}"
        )
    tokenizer = tokenizer_of(loaded)
    encoded = encode(examples, tokenizer, max_length or min(positions, LONGEST))
    pad = tokenizer.pad_token_id
    encoded = Encoded(
        encoded.ids,
        encoded.types if _takes_types(loaded.model, encoded) else None,
        encoded.labels if is_classifier(loaded) else None,
    )
    return pad_batches(encoded, batch, 0 if pad is None else pad)


def _takes_types(model: Any, encoded: Encoded) -> bool:
    """Whether a model knows the token types: a tokenizer may give them to one that was trained without."""
    if encoded.types is None or "token_type_ids" not in inspect.signature(model.forward).parameters:
        return False
    highest = max(max(row) for row in encoded.types)
    return highest < getattr(model.config, "type_vocab_size", 2)


def pad_batches(encoded: Encoded, batch: int, pad_id: int) -> list[dict[str, torch.Tensor]]:
    """Rows in order of length, `batch` at a time; see `batches`."""
    order = sorted(range(len(encoded)), key=lambda row: len(encoded.ids[row]))
    found = []
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        one = {
            "input_ids": _padded([encoded.ids[row] for row in rows], pad_id),
            "attention_mask": _padded([(1,) * len(encoded.ids[row]) for row in rows], 0),
        }
        if encoded.types is not None:
            one["token_type_ids"] = _padded([encoded.types[row] for row in rows], 0)
        if encoded.labels is not None:
            one["labels"] = torch.tensor([encoded.labels[row] for row in rows])
        found.append(one)
    return found


def token_stream(examples: Examples, tokenizer: Any) -> torch.Tensor:
    """All texts as one run of token ids [N], blank lines between them, as perplexity is usually measured."""
    ids = tokenizer("\n\n".join(examples.first), truncation=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def tokenizer_of(loaded: LoadedModel) -> Any:
    """The model's tokenizer. Raises InputError where it has none."""
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.name} has no tokenizer, so it cannot read text")
    return loaded.tokenizer


def _padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *(fill,) * (width - len(row))] for row in rows])
