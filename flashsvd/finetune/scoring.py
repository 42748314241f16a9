"""The headline score of any model on a task's validation split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from flashsvd.measure.predictions import predict
from flashsvd.measure.scores import task_metrics
from flashsvd.models.load import LoadedModel
from flashsvd.results import Metric
from flashsvd.tasks.base import Examples, Task
from flashsvd.tasks.encoding import batches

_BATCH = 32


def scorer(
    task: Task, examples: Examples, loaded: LoadedModel, max_length: int, seed: int
) -> Callable[[Any], Metric]:
    """A function that scores a model, and leaves it in eval mode. The examples are tokenised once, for all scores.

    The function raises NonFiniteError where a logit is not finite; no example is skipped.
    """
    found = batches(examples, loaded, _BATCH, max_length=max_length)

    labels = torch.cat([batch["labels"] for batch in found])

    def score(model: Any) -> Metric:
        logits = torch.cat(predict(model.eval(), found))
        return task_metrics(task, logits.numpy(), labels.numpy(), seed=seed)[0]

    return score
