"""Accuracy of a classifier on sequences of token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from flashsvd.measure.predictions import predict
from flashsvd.measure.scores import accuracy_metric
from flashsvd.results import Metric
from flashsvd.tasks.encoding import Encoded, pad_batches

_BATCH = 32


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
    batches = pad_batches(Encoded(tuple(map(tuple, encoded)), None, tuple(labels)), _BATCH, pad_id)
    found = predict(model, batches, progress and (lambda done: progress(done / len(batches))))
    truth = torch.cat([batch["labels"] for batch in batches])
    return accuracy_metric(torch.cat(found).argmax(-1).numpy(), truth.numpy(), seed=seed)
