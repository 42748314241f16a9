"""Inputs: held-out pieces with labels, and full batches for timing."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch

from flashsvd.errors import InputError, ModelError
from flashsvd.models.load import LoadedModel


@dataclass(frozen=True)
class Samples:
    """Token ids and labels of held-out pieces, cut at the model's positions."""

    encoded: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    pad_id: int


def evaluation_samples(loaded: LoadedModel, count: int, seed: int) -> Samples | None:
    """At most `count` held-out pieces drawn with a seed; None where there is nothing to score.

    That is a model without an evaluation set, and one whose head does not give a label to a whole sequence.

    Raises:
        ModelError: the evaluation file is not a Parquet table with columns text and label.
    """
    if not type(loaded.model).__name__.endswith("ForSequenceClassification"):
        return None
    return _held_out(loaded, count, seed)


def _held_out(loaded: LoadedModel, count: int, seed: int) -> Samples | None:
    if loaded.evaluation is None or loaded.tokenizer is None:
        return None
    try:
        frame = pd.read_parquet(loaded.evaluation, columns=["text", "label"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{loaded.evaluation} is no evaluation set: expected Parquet with text and label ({error})"
        ) from None
    drawn = frame.sample(n=min(count, len(frame)), random_state=seed)
    encoded = loaded.tokenizer(
        drawn["text"].tolist(), truncation=True, max_length=loaded.shape.max_positions
    )["input_ids"]
    return Samples(
        tuple(map(tuple, encoded)), tuple(map(int, drawn["label"])), loaded.tokenizer.pad_token_id or 0
    )


def check_input_size(loaded: LoadedModel, batch: int, seq: int) -> None:
    """Raises InputError for an empty batch or a sequence outside the model's positions."""
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    limit = loaded.shape.max_positions
    if not 1 <= seq <= limit:
        raise InputError(f"seq must be from 1 to {limit} (the positions of {loaded.name}), got {seq}")


def timing_ids(loaded: LoadedModel, batch: int, seq: int, seed: int) -> torch.Tensor:
    """Token ids [batch, seq] with no padding: held-out text end to end where there is any, else random ids.

    No padding, so that the dense baseline keeps its fastest path.
    """
    check_input_size(loaded, batch, seq)
    samples = _held_out(loaded, count=4096, seed=seed)
    if samples is not None:
        stream = torch.tensor([token for piece in samples.encoded for token in piece])
        if len(stream) > 0:
            positions = torch.arange(batch * seq) % len(stream)
            return stream[positions].reshape(batch, seq).to(loaded.device)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = loaded.model.config.vocab_size
    return torch.randint(vocabulary, (batch, seq), generator=generator).to(loaded.device)
