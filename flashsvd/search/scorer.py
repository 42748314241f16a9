"""Plans scored on a model's evaluation set: accuracy, and KL to the dense model, which runs once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from flashsvd.data import evaluation_samples
from flashsvd.engines.build import build
from flashsvd.errors import ModelError
from flashsvd.factors import factorise
from flashsvd.measure.divergence import divergence, log_probabilities
from flashsvd.measure.scores import accuracy_metric, kl_metric
from flashsvd.models.inputs import Batch
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan
from flashsvd.results import Metric
from flashsvd.spectra import Spectra
from flashsvd.tasks.encoding import Encoded, pad_batches

_BATCH = 32


def can_score(loaded: LoadedModel) -> bool:
    """Whether a model has labelled pieces that it can be scored on."""
    return loaded.trained and evaluation_samples(loaded, 1, 0) is not None


@dataclass
class Scorer:
    """Scores plans of one model on the same pieces. The last plan's predictions are kept."""

    loaded: LoadedModel
    spectra: Spectra
    batches: Sequence[Batch]
    labels: torch.Tensor
    dense: list[torch.Tensor]
    seed: int
    last: tuple[RankPlan, list[torch.Tensor]] | None = None

    @classmethod
    def of(cls, loaded: LoadedModel, spectra: Spectra, samples: int, seed: int) -> Self:
        """On at most `samples` pieces of the evaluation set.

        Raises:
            ModelError: the model has none, or random weights.
        """
        drawn = evaluation_samples(loaded, samples, seed)
        if drawn is None or not loaded.trained:
            raise ModelError(f"{loaded.name} has no held-out set to score: accuracy does not apply")
        batches = pad_batches(Encoded(drawn.encoded, None, drawn.labels), _BATCH, drawn.pad_id)
        labels = torch.cat([batch["labels"] for batch in batches])
        return cls(loaded, spectra, batches, labels, log_probabilities(loaded.model, batches), seed)

    @property
    def dense_accuracy(self) -> Metric:
        return self._accuracy(self.dense)

    def accuracy(self, plan: RankPlan) -> Metric:
        """With its Wilson interval. Raises FloatingPointError where a logit is not finite."""
        return self._accuracy(self._predictions(plan))

    def kl(self, plan: RankPlan) -> Metric:
        """Mean KL to the dense model, nats."""
        return kl_metric(divergence(self.dense, self._predictions(plan)), self.seed)

    def _accuracy(self, found: list[torch.Tensor]) -> Metric:
        return accuracy_metric(torch.cat(found).argmax(-1).numpy(), self.labels.numpy(), seed=self.seed)

    def _predictions(self, plan: RankPlan) -> list[torch.Tensor]:
        if self.last is None or self.last[0] != plan:
            model = build(self.loaded, "lowrank", factorise(self.loaded, self.spectra, plan), plan)
            self.last = plan, log_probabilities(model, self.batches)
        return self.last[1]
