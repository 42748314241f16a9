"""A budget -> the best plan within so many parameters, bytes, FLOPs or milliseconds, and how good it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flashsvd.allocate import Budget, Costs, Losses
from flashsvd.allocate.costs import Kind
from flashsvd.compare import model_info
from flashsvd.engines.build import build, weight_bytes
from flashsvd.errors import InputError, ModelError
from flashsvd.evaluation.held_out import can_score
from flashsvd.factors import factorise
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel
from flashsvd.models.shape import ModelShape
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan, bytes_of
from flashsvd.results import Calibration, Metric, ModelInfo, Quantiles
from flashsvd.search.allocators import ALLOCATORS, NEED_TEXT, plan_for
from flashsvd.search.judge import Allocation
from flashsvd.search.latency_table import latency_table, measured_ms
from flashsvd.search.scorer import Scorer
from flashsvd.search.text_split import TextSplit
from flashsvd.session import Session
from flashsvd.spectra import Spectra

_ALLOCATION_TEXT = Calibration(samples=512)


@dataclass(frozen=True)
class Setting:
    """What a budget is for: a model, a method, an allocator, and the text that it measures on.

    samples: pieces of the model's evaluation set, or windows of its text, that the result is scored on, 512 and
    64 if None; 0 for none. batch and seq are those of a latency.
    """

    model: str
    method: str = "svd"
    allocator: str = "calibrated"
    per_head: bool = True
    dtype: str = "fp32"
    device: str = "auto"
    calibration: Calibration = _ALLOCATION_TEXT
    samples: int | None = None
    batch: int = 8
    seq: int = 128
    step: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Tried:
    """One plan that was looked at on the way, with what was measured of it."""

    name: str
    keep: float
    kept_parameters: int
    kl: float | None
    score: Metric | None
    passes: bool | None = None


@dataclass(frozen=True)
class BudgetAnswer:
    """The plan for a budget. asked, got and dense are amounts of the whole model, got by the costs that were
    allocated with; kl and uniform_kl are held-out, of calibration text, and score and dense_score of the
    evaluation set, each None where a model has no such text.
    latency_ms and dense_latency_ms are measured on the whole model, for a latency budget.
    """

    model: ModelInfo
    method: str
    allocator: str
    kind: Kind
    asked: float
    got: float
    dense: float
    plan: RankPlan
    chosen: str
    kl: float | None
    uniform_kl: float | None
    candidates: tuple[Tried, ...]
    score: Metric | None
    dense_score: Metric | None
    latency_ms: Quantiles | None
    dense_latency_ms: Quantiles | None
    seconds: float


def plan_for_budget(
    setting: Setting,
    kind: Kind,
    amount: float,
    session: Session | None = None,
    progress: Progress | None = None,
) -> BudgetAnswer:
    """The best plan of an allocator at which the whole model costs at most `amount`.

    Parameters and bytes count embeddings, norms, heads and biases; FLOPs are those of the factored linears per token.
    Milliseconds are of a forward pass of the low-rank engine at `setting.batch` and `seq`: times of single projections
    added up, to which the whole model is then measured.

    Raises:
        PlanError: nothing fits; the message names the least possible amount.
        InputError, ModelError, CheckpointError, DeviceError: as loading, calibration and allocation do.
    """
    report = progress or (lambda stage, share: None)
    started = time.perf_counter()
    loaded, spectra, text = prepare(setting, session or Session(), report)
    costs, fixed = costs_for(loaded, spectra.shape, kind, setting, report)
    budget = Budget(kind, amount, fixed)
    found = allocate_for(setting, loaded, spectra, budget, costs, text, report)
    scorer = None
    if setting.samples != 0 and can_score(loaded):
        scorer = Scorer.of(loaded, spectra, setting.samples, setting.seed)
    report("Scoring the plan", 0.9)
    timed = None
    if kind == "latency_ms":
        factored = build(loaded, "lowrank", factorise(loaded, spectra, found.plan), found.plan)
        models = {"dense": loaded.model, "lowrank": factored}
        timed = measured_ms(models, loaded, setting.batch, setting.seq, seed=setting.seed)
    report("Done", 1.0)
    return BudgetAnswer(
        model=model_info(loaded),
        method=spectra.method,
        allocator=setting.allocator,
        kind=kind,
        asked=amount,
        got=costs.of_plan(found.plan) + fixed,
        dense=costs.of_plan(RankPlan.dense(spectra.shape)) + fixed,
        plan=found.plan,
        chosen=found.chosen,
        kl=found.kl,
        uniform_kl=found.uniform_kl,
        candidates=tuple(
            Tried(one.name, one.plan.keep, one.plan.kept_parameters, one.kl, None) for one in found.evidence
        ),
        score=scorer.score(found.plan).metric if scorer else None,
        dense_score=scorer.dense if scorer else None,
        latency_ms=timed["lowrank"] if timed else None,
        dense_latency_ms=timed["dense"] if timed else None,
        seconds=time.perf_counter() - started,
    )


def costs_for(
    loaded: LoadedModel, shape: ModelShape, kind: Kind, setting: Setting, progress: Progress | None = None
) -> tuple[Costs, float]:
    """The costs of a kind of budget, and what the rest of the whole model costs whatever the plan.

    Raises:
        InputError: another kind.
    """
    if kind == "parameters":
        return Costs.parameters(), loaded.parameters - shape.dense_parameters
    if kind == "bytes":
        linears = bytes_of(shape.dense_parameters, setting.dtype)
        return Costs.bytes(setting.dtype), weight_bytes(loaded.model) - linears
    if kind == "flops":
        return Costs.flops(), 0.0
    if kind != "latency_ms":
        raise InputError(f"a budget is in parameters, bytes, flops or latency_ms, got {kind!r}")
    table = latency_table(
        loaded,
        shape,
        setting.batch,
        setting.seq,
        step=setting.step,
        seed=setting.seed,
        progress=progress,
    )
    costs = Costs.latency(table)
    whole = measured_ms({"dense": loaded.model}, loaded, setting.batch, setting.seq, seed=setting.seed)
    # Noise can make the parts come to more than the whole.
    return costs, max(0.0, whole["dense"].p50 - costs.of_plan(RankPlan.dense(shape)))


def prepare(
    setting: Setting, session: Session, report: Progress
) -> tuple[LoadedModel, Spectra, TextSplit | None]:
    """The model, its spectra, and the text to allocate on; None where the model has none and none is needed."""
    if setting.allocator not in ALLOCATORS:
        raise InputError(f"allocator must be one of {', '.join(ALLOCATORS)}, got {setting.allocator!r}")
    if setting.samples is not None and setting.samples < 0:
        raise InputError(f"samples must be 0 or more, got {setting.samples}")
    report("Loading the model", 0.0)
    loaded = session.model(setting.model, setting.dtype, setting.device, setting.per_head)
    method = method_named(setting.method)
    spectra, _ = session.spectra(
        loaded, method.spec, lambda stage, share: report(stage, 0.02 + 0.08 * share), setting.calibration
    )
    try:
        return loaded, spectra, TextSplit.drawn(loaded, setting.calibration)
    except (InputError, ModelError):
        # uniform and energy can do without: their answer then says nothing of a KL.
        if setting.allocator in NEED_TEXT:
            raise
        return loaded, spectra, None


def allocate_for(
    setting: Setting,
    loaded: LoadedModel,
    spectra: Spectra,
    budget: Budget,
    costs: Costs,
    text: TextSplit | None,
    report: Progress,
    dense_losses: Losses | None = None,
) -> Allocation:
    """What the setting's allocator makes of a budget."""
    options: Mapping[str, Any] = {}
    if setting.allocator in ("calibrated", "ars"):
        options = {"step": setting.step}
    if dense_losses is not None:
        options = {**options, "dense_losses": dense_losses}
    return plan_for(
        setting.allocator,
        loaded,
        spectra,
        budget,
        costs,
        text,
        seed=setting.seed,
        progress=lambda stage, share: report(stage, 0.1 + 0.8 * share),
        **options,
    )
