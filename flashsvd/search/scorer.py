"""Plans scored on a model's held-out set, and their KL to the dense model, which runs once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from flashsvd.engines.build import build
from flashsvd.evaluation.held_out import HeldOut, Scored, held_out
from flashsvd.factors import factorise
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan
from flashsvd.results import Metric
from flashsvd.spectra import Spectra


@dataclass
class Scorer:
    """Scores plans of one model on the same pieces, or the same text."""

    loaded: LoadedModel
    spectra: Spectra
    held: HeldOut
    dense: Metric

    @classmethod
    def of(cls, loaded: LoadedModel, spectra: Spectra, samples: int | None, seed: int) -> Self:
        """Raises what `flashsvd.evaluation.held_out.held_out` raises."""
        held = held_out(loaded, samples, seed)
        return cls(loaded, spectra, held, held.score(loaded.model))

    def score(self, plan: RankPlan) -> Scored:
        """Raises FloatingPointError where a prediction is not finite."""
        model = build(self.loaded, "lowrank", factorise(self.loaded, self.spectra, plan), plan)
        return self.held.beside_dense(model)
