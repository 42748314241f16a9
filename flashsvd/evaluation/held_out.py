"""A model's own held-out set: accuracy of a classifier, perplexity of a language model, and how far from dense."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from flashsvd.data import Samples, evaluation_samples, evaluation_tokens, window_of
from flashsvd.errors import ModelError
from flashsvd.measure.divergence import Divergence, divergence, log_probabilities
from flashsvd.measure.language import Text
from flashsvd.measure.scores import accuracy_metric, agreement_metric, kl_metric
from flashsvd.models.load import LoadedModel
from flashsvd.results import Metric
from flashsvd.tasks.encoding import Encoded, pad_batches

_BATCH = 32
_WINDOWS = 8
DEFAULT_PIECES = 512
DEFAULT_WINDOWS = 64

Tell = Callable[[float], None]


@dataclass(frozen=True)
class Scored:
    """A model's score, and its KL and agreement with the dense model over the same predictions."""

    metric: Metric
    kl: Metric
    agreement: Metric


class HeldOut(Protocol):
    """Scores models of one head, dense or compressed, on the same text. What the dense model says is kept."""

    @property
    def words(self) -> str:
        """What is scored, such as "512 held-out pieces"."""
        ...

    def digest(self) -> str:
        """Of all that is scored and how: the same for the same text, labels, cut and seed."""
        ...

    def score(self, model: Any, tell: Tell | None = None) -> Metric:
        """Accuracy or perplexity. tell: hears the share done. Raises NonFiniteError; nothing is skipped."""
        ...

    def beside_dense(self, model: Any, tell: Tell | None = None) -> Scored:
        """The same, with the divergence from the dense model."""
        ...


def can_score(loaded: LoadedModel) -> bool:
    """Whether a model has weights that mean something and a held-out set that its head can be scored on."""
    return loaded.trained and (
        evaluation_samples(loaded, 1, 0) is not None or evaluation_tokens(loaded, 1) is not None
    )


def held_out(loaded: LoadedModel, samples: int | None, seed: int) -> HeldOut:
    """At most `samples` pieces, drawn with `seed`, or as many windows from the start of a language model's text.

    None for 512 pieces or 64 windows, which take about as long.

    Raises:
        ModelError: the model has no such set, one that cannot be read, or random weights.
    """
    if loaded.trained:
        drawn = evaluation_samples(loaded, samples or DEFAULT_PIECES, seed)
        if drawn is not None:
            return Pieces(loaded.model, drawn, seed)
        tokens = evaluation_tokens(loaded, samples or DEFAULT_WINDOWS)
        if tokens is not None:
            return Passages(loaded.model, tokens, window_of(loaded), seed)
    raise ModelError(f"{loaded.name} has no held-out set to score: accuracy does not apply")


class Pieces:
    """Labelled pieces, for a classifier of sequences: the share whose highest logit is their label.

    Run in batches of like length, padded on the right.
    """

    def __init__(self, dense: Any, samples: Samples, seed: int) -> None:
        self._dense_model, self._samples, self._seed = dense, samples, seed
        self._batches = pad_batches(Encoded(samples.encoded, None, samples.labels), _BATCH, samples.pad_id)
        self._labels = torch.cat([batch["labels"] for batch in self._batches]).numpy()
        self._dense: list[torch.Tensor] = []

    @property
    def words(self) -> str:
        return f"{len(self._labels)} held-out pieces"

    def digest(self) -> str:
        return hashlib.sha256(f"{self._samples} {self._seed}".encode()).hexdigest()

    def score(self, model: Any, tell: Tell | None = None) -> Metric:
        found = self._run(model, tell)
        if model is self._dense_model:
            self._dense = found
        return self._accuracy(found)

    def beside_dense(self, model: Any, tell: Tell | None = None) -> Scored:
        self._dense = self._dense or self._run(self._dense_model, None)
        found = self._run(model, tell)
        return _scored(self._accuracy(found), divergence(self._dense, found), self._seed)

    def _run(self, model: Any, tell: Tell | None) -> list[torch.Tensor]:
        count = len(self._batches)
        return log_probabilities(model, self._batches, tell and (lambda done: tell(done / count)))

    def _accuracy(self, found: list[torch.Tensor]) -> Metric:
        return accuracy_metric(torch.cat(found).argmax(-1).numpy(), self._labels, seed=self._seed)


class Passages:
    """Plain text, token ids [N] in windows side by side, for a causal language model."""

    def __init__(self, dense: Any, tokens: torch.Tensor, window: int, seed: int) -> None:
        self._text = Text(tokens, dense, window=window, batch=_WINDOWS, seed=seed)
        self._window, self._seed = window, seed

    def digest(self) -> str:
        return hashlib.sha256(
            f"{self._text.tokens.tolist()} {self._window} {self._seed}".encode()
        ).hexdigest()

    @property
    def words(self) -> str:
        return f"{len(self._text.tokens) - 1:,} held-out tokens"

    def score(self, model: Any, tell: Tell | None = None) -> Metric:
        return self._text.perplexity(model, tell).metric(self._seed)

    def beside_dense(self, model: Any, tell: Tell | None = None) -> Scored:
        found, apart = self._text.beside_dense(model, tell)
        return _scored(found.metric(self._seed), apart, self._seed)


def _scored(metric: Metric, apart: Divergence, seed: int) -> Scored:
    return Scored(
        metric, kl_metric(apart, seed, metric.counted), agreement_metric(apart, seed, metric.counted)
    )
