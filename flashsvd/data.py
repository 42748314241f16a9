"""Inputs: held-out pieces with labels, held-out text, and full batches for timing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from flashsvd.errors import InputError, ModelError
from flashsvd.measure.perplexity import is_causal
from flashsvd.models.load import LoadedModel
from flashsvd.tasks.base import Examples
from flashsvd.tasks.encoding import LONGEST, token_stream, tokenizer_of

_AT_ONCE = 64


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
    frame = _held_out(loaded, ["text", "label"])
    if frame is None or loaded.tokenizer is None:
        return None
    drawn = _drawn(frame, count, seed)
    return Samples(
        tuple(map(tuple, _encoded(loaded, drawn))),
        tuple(map(int, drawn["label"])),
        loaded.tokenizer.pad_token_id or 0,
    )


def evaluation_tokens(loaded: LoadedModel, windows: int) -> torch.Tensor | None:
    """The first windows of a causal language model's held-out text, as one run of token ids [N]; None where it has
    none. One token more than the windows hold: the last one is only predicted.

    Raises:
        ModelError: the evaluation file is not a Parquet table with a column text.
    """
    if not is_causal(loaded.model):
        return None
    frame = _held_out(loaded, ["text"])
    if frame is None:
        return None
    examples = Examples(tuple(map(str, frame["text"])), None, None)
    tokens = token_stream(examples, loaded.tokenizer)[: windows * window_of(loaded) + 1]
    return tokens if len(tokens) > 1 else None


def window_of(loaded: LoadedModel) -> int:
    """Tokens of a window of plain text: the model's positions, up to 2048."""
    return min(loaded.shape.max_positions, LONGEST)


def _held_out(loaded: LoadedModel, columns: list[str]) -> pd.DataFrame | None:
    """These columns of the evaluation set; None for a model without one, or without a tokenizer to read it."""
    if loaded.evaluation is None or loaded.tokenizer is None:
        return None
    try:
        return pd.read_parquet(loaded.evaluation, columns=columns)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{loaded.evaluation} is no evaluation set: expected Parquet with {' and '.join(columns)} ({error})"
        ) from None


def _drawn(frame: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    return frame.sample(n=min(count, len(frame)), random_state=seed)


def _encoded(loaded: LoadedModel, frame: pd.DataFrame) -> list[list[int]]:
    """Token ids of each text, cut at the model's positions."""
    found: Any = tokenizer_of(loaded)(
        frame["text"].tolist(), truncation=True, max_length=loaded.shape.max_positions
    )
    return list(found["input_ids"])


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
    frame = _held_out(loaded, ["text"])
    if frame is not None:
        drawn = _drawn(frame, 4096, seed)
        tokens: list[int] = []
        # As many pieces as it takes: to encode all of them took 0.4 s of a run on the bundled model.
        for start in range(0, len(drawn), _AT_ONCE):
            if len(tokens) < batch * seq:
                tokens += [
                    token for piece in _encoded(loaded, drawn[start : start + _AT_ONCE]) for token in piece
                ]
        if tokens:
            positions = torch.arange(batch * seq) % len(tokens)
            return torch.tensor(tokens)[positions].reshape(batch, seq).to(loaded.device)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = loaded.model.config.vocab_size
    return torch.randint(vocabulary, (batch, seq), generator=generator).to(loaded.device)
