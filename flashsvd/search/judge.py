"""Which of several plans is best: their divergence from the dense model on text that none of them was made on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from flashsvd.engines.build import build
from flashsvd.errors import InputError
from flashsvd.factors import factorise
from flashsvd.measure.divergence import divergence, log_probabilities
from flashsvd.models.inputs import Batch
from flashsvd.models.load import LoadedModel
from flashsvd.ranks import RankPlan
from flashsvd.spectra import Spectra

SURE = 8.0
"""Temperature at which a classifier that is sure of itself still says how sure."""
_KEPT_NUMBERS = 2**28
"""Log-probabilities of the dense model that are kept, 1 GiB; beyond that it runs again."""


@dataclass(frozen=True)
class Candidate:
    """One plan that an allocator looked at. kl: mean KL to dense on the held-out text, nats per prediction; softened:
    the same at the judge's temperature, by which plans are chosen.
    """

    name: str
    plan: RankPlan
    kl: float
    softened: float


@dataclass(frozen=True)
class Allocation:
    """The plan that was chosen, and between which. kl and uniform_kl are held-out; None where nothing was measured, or
    no uniform plan fits the budget. seconds: the whole search.
    """

    plan: RankPlan
    chosen: str
    kl: float | None
    uniform_kl: float | None
    seconds: float
    evidence: tuple[Candidate, ...] = field(default=())


class Judge:
    """Divergence of plans from the dense model on some batches.

    temperature: of the softened KL, T²·KL(softmax(z/T) ‖ softmax(z'/T)), which chooses between plans. By default 8 for
    a classifier of sequences and 1 for what predicts tokens. A classifier is so sure of its calibration text that the
    mean KL over a few hundred sequences is that of one or two: of plans whose KL on other text was half of uniform's,
    it chose one in 28 % of draws of 200 sequences, at temperature 8 in over 99 %.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        spectra: Spectra,
        batches: Sequence[Batch],
        temperature: float | None = None,
    ) -> None:
        if not batches:
            raise InputError("plans are judged on batches of text, got none")
        self._loaded, self._spectra, self._batches = loaded, spectra, batches
        self._kept: dict[int, torch.Tensor] = {}
        one_each = len(self._dense(0)) == len(batches[0]["input_ids"])
        self._temperature = temperature or (SURE if one_each else 1.0)

    def model(self, plan: RankPlan) -> Any:
        """The low-rank model of a plan; nothing is copied."""
        return build(self._loaded, "lowrank", factorise(self._loaded, self._spectra, plan), plan)

    def kl(self, plan: RankPlan) -> float:
        """Nats per prediction. Raises FloatingPointError where a logit is not finite."""
        return self.candidate("", plan).kl

    def candidate(self, name: str, plan: RankPlan) -> Candidate:
        """A plan with its KL, plain and softened."""
        model = self.model(plan)
        plain, soft, places = 0.0, 0.0, 0
        for number in range(len(self._batches)):
            dense, found = self._dense(number), self._run(model, number)
            plain += float(divergence([dense], [found]).kl.sum())
            if self._temperature != 1:
                soft += float(divergence([self._soften(dense)], [self._soften(found)]).kl.sum())
            places += len(dense)
        kl = plain / places
        softened = kl if self._temperature == 1 else self._temperature**2 * soft / places
        return Candidate(name, plan, kl, softened)

    def _dense(self, number: int) -> torch.Tensor:
        """The dense model's log-probabilities of one batch; kept where they are few enough."""
        if number in self._kept:
            return self._kept[number]
        found = self._run(self._loaded.model, number)
        if sum(map(torch.Tensor.numel, self._kept.values())) + found.numel() <= _KEPT_NUMBERS:
            self._kept[number] = found
        return found

    def _run(self, model: Any, number: int) -> torch.Tensor:
        try:
            return log_probabilities(model, [self._batches[number]])[0]
        except FloatingPointError:
            raise FloatingPointError(f"logits are not finite in batch {number + 1}") from None

    def _soften(self, log_probability: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(log_probability.double() / self._temperature, -1)


def judged(
    plans: Mapping[str, RankPlan], judge: Judge, progress: Callable[[float], None]
) -> tuple[Candidate, ...]:
    """Every plan with its held-out KL, in their order; equal plans are measured once."""
    known: dict[RankPlan, Candidate] = {}
    found = []
    for done, (name, plan) in enumerate(plans.items()):
        progress(done / len(plans))
        if plan not in known:
            known[plan] = judge.candidate(name, plan)
        found.append(replace(known[plan], name=name))
    return tuple(found)


def chosen_of(found: Sequence[Candidate], seconds: float) -> Allocation:
    """The candidate of least softened KL; the first of equal ones."""
    best = min(found, key=lambda candidate: candidate.softened)
    even = next((candidate.kl for candidate in found if candidate.name == "uniform"), None)
    return Allocation(best.plan, best.name, best.kl, even, seconds, tuple(found))
