"""Accuracy with its sample size, seed, interval and floor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from flashsvd.errors import NonFiniteError
from flashsvd.measure.intervals import wilson_interval
from flashsvd.results import Metric

__all__ = ["measure_accuracy", "wilson_interval"]

_BATCH = 32


@torch.inference_mode()
def measure_accuracy(
    model: Any,
    encoded: Sequence[Sequence[int]],
    labels: Sequence[int],
    *,
    pad_id: int,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> Metric:
    """Share of sequences whose highest logit is their label.

    encoded: token ids, one list a sequence; run in batches of like length, padded on the right.

    Raises:
        NonFiniteError: a logit is not finite; the run fails, no sample is skipped.
    """
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    correct = 0
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        width = len(encoded[rows[-1]])
        ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for line, row in enumerate(rows):
            ids[line, : len(encoded[row])] = torch.tensor(encoded[row])
            mask[line, : len(encoded[row])] = 1
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        if not torch.isfinite(logits).all():
            raise NonFiniteError(f"logits are not finite in samples {start} to {start + len(rows)}")
        guesses = logits.argmax(-1).tolist()
        correct += sum(guess == labels[row] for guess, row in zip(guesses, rows, strict=True))
        if progress:
            progress((start + len(rows)) / len(order))
    n = len(order)
    low, high = wilson_interval(correct, n)
    floor = Counter(labels).most_common(1)[0][1] / n
    return Metric("accuracy", correct / n, n, low, high, floor, seed)
