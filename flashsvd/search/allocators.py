"""Every way to choose ranks within a budget, by name."""

from __future__ import annotations

import time
from typing import Any

from flashsvd.allocate import Budget, Costs, energy
from flashsvd.allocate.sensitivity import sensitivity_search
from flashsvd.errors import InputError, PlanError
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.search.ars import ars
from flashsvd.search.calibrate import calibrated, probe, uniform_within
from flashsvd.search.judge import Allocation, Judge, chosen_of, judged
from flashsvd.search.text_split import TextSplit
from flashsvd.spectra import Spectra

ALLOCATORS = {
    "uniform": "the same keep everywhere",
    "energy": "the same share of squared singular values everywhere",
    "asvd": "ASVD's sensitivity search: one threshold on the KL of truncating a slot (arXiv 2312.05821)",
    "calibrated": "least expected KL, measured on calibration text, and chosen on other text",
    "ars": "adaptive rank selection: trained masks (NAACL 2024, long paper 13)",
}
NEED_TEXT = frozenset({"asvd", "calibrated", "ars"})
"""Those that run the model on calibration text."""

ASVD_KEEPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SEARCH_STEPS = 40


def plan_for(
    name: str,
    loaded: LoadedModel,
    spectra: Spectra,
    budget: Budget,
    costs: Costs,
    text: TextSplit | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Allocation:
    """The plan of one allocator within a budget; with text, also its held-out KL and that of uniform.

    options: of `calibrated` or `train_masks` (`flashsvd.search.ars`); `keeps` of asvd. calibrated and ars are on the
    held-out text never worse than uniform, in the KL that chooses; the others are what their rule says.

    Raises:
        InputError: an unknown allocator, an option that it does not have, or no text where it needs some.
        PlanError: no plan of this allocator fits the budget.
    """
    if name not in ALLOCATORS:
        raise InputError(f"allocator must be one of {', '.join(ALLOCATORS)}, got {name!r}")
    if name in NEED_TEXT and text is None:
        raise InputError(f"allocator {name} measures on calibration text: give a TextSplit, or use uniform")
    allowed = {
        "calibrated": {"by", "rounds", "step", "dense_losses"},
        "ars": {"steps", "learning_rate", "temperature", "learn", "step"},
        "asvd": {"keeps"},
    }.get(name, set())
    unknown = set(options) - allowed
    if unknown:
        raise InputError(
            f"allocator {name} has no option {min(unknown)!r}: its options are "
            f"{', '.join(sorted(allowed)) or 'none'}"
        )
    if text is not None and name in ("calibrated", "ars"):
        run: Any = calibrated if name == "calibrated" else ars
        found: Allocation = run(loaded, spectra, budget, costs, text, seed=seed, progress=progress, **options)
        return found
    started = time.perf_counter()
    tell = progress or (lambda stage, share: None)
    even = uniform_within(spectra.shape, costs, budget)
    if name == "uniform":
        plan = even
    elif name == "energy":
        plan = energy_within(spectra, budget, costs)
    else:
        assert text is not None
        keeps = options.get("keeps", ASVD_KEEPS)
        probes = probe(
            loaded, spectra, text.probe, keeps=keeps, progress=lambda stage, share: tell(stage, 0.9 * share)
        )
        plan = sensitivity_search(spectra.shape, probes.kl, costs, budget)
    if plan is None:
        raise PlanError(f"no {name} plan fits {budget.value:,.0f} {budget.kind}: raise the budget")
    if text is None:
        return Allocation(plan, name, None, None, time.perf_counter() - started)
    plans = {name: plan} if even is None or name == "uniform" else {"uniform": even, name: plan}
    judge = Judge(loaded, spectra, text.held_out)
    candidates = judged(plans, judge, lambda share: tell("Measuring on held-out text", 0.9 + 0.1 * share))
    uniform_kl = chosen_of(candidates, 0.0).uniform_kl
    return Allocation(plan, name, candidates[-1].kl, uniform_kl, time.perf_counter() - started, candidates)


def energy_within(spectra: Spectra, budget: Budget, costs: Costs) -> RankPlan | None:
    """The energy plan of largest share that fits a budget; None where none does."""
    shape, sigmas = spectra.shape, spectra.sigmas()
    if costs.of_plan(RankPlan.dense(shape)) <= budget.left:
        return RankPlan.dense(shape)
    low, high = 1e-6, 1.0
    if costs.of_plan(energy(shape, sigmas, low)) > budget.left:
        return None
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        if costs.of_plan(energy(shape, sigmas, middle)) <= budget.left:
            low = middle
        else:
            high = middle
    return energy(shape, sigmas, low)
