"""Calibration text -> batches -> the statistics that data-aware methods are made of."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import torch

from flashsvd.data import timing_ids
from flashsvd.errors import InputError
from flashsvd.models.inputs import Batch
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress
from flashsvd.results import Calibration
from flashsvd.stats.base import Need, Statistics
from flashsvd.stats.collect import collect, warnings_for
from flashsvd.tasks import batches, sample, task_named

_BATCH = 16
_RANDOM_TOKENS = 256


def calibration_batches(loaded: LoadedModel, choice: Calibration) -> Sequence[Batch]:
    """Batches of the training half of a task, never of what a model is scored on; with labels where there are any.

    A random-weight preset gets random tokens: its statistics are as meaningless as its weights, and cost as much.

    Raises:
        InputError: nothing to calibrate on, or fewer than one sample asked for.
        ModelError: the text cannot be read.
    """
    if choice.samples < 1:
        raise InputError(f"calibration samples must be at least 1, got {choice.samples}")
    if choice.text is None and not loaded.trained:
        length = min(_RANDOM_TOKENS, loaded.shape.max_positions)
        ids = timing_ids(loaded, choice.samples, length, choice.seed).cpu()
        return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(_BATCH)]
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.name} has no tokenizer, so it cannot read calibration text")
    task = task_named(choice.text or "bundled", loaded)
    examples = sample(task.load("train"), choice.samples, choice.seed)
    return batches(examples, loaded, _BATCH)


def statistics_for(
    loaded: LoadedModel, needs: Collection[Need], choice: Calibration, progress: Progress | None = None
) -> Statistics:
    """Statistics of a model on its calibration text, from the cache where they are there.

    Warns, in the log and once, where the text is too short for the widest input.

    Raises:
        InputError, ModelError: see `calibration_batches`.
    """
    statistics = collect(loaded, calibration_batches(loaded, choice), needs, progress=progress)
    for line in warnings_for(statistics):
        logging.getLogger("flashsvd").warning(line)
    return statistics
