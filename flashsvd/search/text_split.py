"""Calibration text in two parts: what an allocator looks at, and what it is judged on. Neither is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from flashsvd.errors import InputError
from flashsvd.models.inputs import Batch
from flashsvd.models.load import LoadedModel
from flashsvd.results import Calibration

_BATCH = 16


@dataclass(frozen=True)
class TextSplit:
    """probe: batches to look at; held_out: batches that choose between plans. No sequence is in both.

    `drawn` takes both from the training half of a task, so that no allocator sees what a model is scored on.

    Raises:
        InputError: either part is empty, or a sequence is in both.
    """

    probe: tuple[Batch, ...]
    held_out: tuple[Batch, ...]

    def __post_init__(self) -> None:
        seen = {_words(row) for row in rows_of(self.probe)}
        others = [_words(row) for row in rows_of(self.held_out)]
        if not seen or not others:
            raise InputError(
                f"an allocator needs text to look at and other text to be judged on, got {len(seen)} and "
                f"{len(others)} sequences; raise the calibration samples"
            )
        both = sum(words in seen for words in others)
        if both:
            raise InputError(f"{both} sequences are in both parts of the calibration text: split it again")

    @classmethod
    def drawn(cls, loaded: LoadedModel, choice: Calibration, probe: int = 96) -> Self:
        """The calibration text of a model, shuffled by its seed: `probe` sequences, at most half, and the rest.

        Raises:
            InputError, ModelError: see `flashsvd.calibration.calibration_batches`; a text said twice counts once.
        """
        from flashsvd.calibration import calibration_batches

        rows = rows_of(calibration_batches(loaded, choice))
        return cls.of_rows(list({_words(row): row for row in rows}.values()), probe, choice.seed)

    @classmethod
    def of_rows(cls, rows: Sequence[Batch], probe: int, seed: int) -> Self:
        """Sequences as `rows_of` gives them, shuffled and split."""
        if probe < 1:
            raise InputError(f"the sequences to probe with must be at least 1, got {probe}")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        count = min(probe, len(rows) // 2)
        first, rest = ([rows[index] for index in part] for part in (order[:count], order[count:]))
        return cls(tuple(to_batches(first)), tuple(to_batches(rest)))


def rows_of(batches: Sequence[Batch]) -> list[dict[str, torch.Tensor]]:
    """Every sequence of some batches on its own, padding left out: [tokens] per token tensor, one label."""
    rows = []
    for batch in batches:
        mask = batch.get("attention_mask")
        keep = torch.ones_like(batch["input_ids"]).bool() if mask is None else mask.bool()
        for index, kept in enumerate(keep):
            rows.append(
                {
                    name: tensor[index][kept] if tensor.shape == keep.shape else tensor[index]
                    for name, tensor in batch.items()
                }
                | {"attention_mask": torch.ones(int(kept.sum()), dtype=torch.long)}
            )
    return rows


def to_batches(rows: Sequence[Batch], size: int = _BATCH) -> list[dict[str, torch.Tensor]]:
    """Batches of like length, padded on the right with zeros under a mask of zeros (labels of tokens with -100)."""
    order = sorted(rows, key=lambda row: len(row["input_ids"]))
    found = []
    for start in range(0, len(order), size):
        part = order[start : start + size]
        found.append(
            {
                name: torch.nn.utils.rnn.pad_sequence(
                    [row[name] for row in part],
                    batch_first=True,
                    padding_value=-100 if name == "labels" else 0,
                )
                if part[0][name].dim()
                else torch.stack([row[name] for row in part])
                for name in part[0]
            }
        )
    return found


def _words(row: Batch) -> tuple[int, ...]:
    return tuple(row["input_ids"].tolist())
