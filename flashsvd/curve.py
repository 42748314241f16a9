"""What the rank costs: accuracy and divergence against keep, one decomposition per matrix for the whole curve."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from flashsvd.allocate import Budget, Costs, uniform
from flashsvd.compare import model_info
from flashsvd.data import evaluation_samples
from flashsvd.engines.build import build, checked_between_layers
from flashsvd.errors import InputError, ModelError
from flashsvd.factors import factorise
from flashsvd.measure.divergence import divergence, log_probabilities
from flashsvd.measure.machine import describe_machine
from flashsvd.measure.scores import accuracy_metric, agreement_metric, kl_metric
from flashsvd.methods import method_named
from flashsvd.models.inputs import Batch
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import Curve, CurvePoint, CurveRequest
from flashsvd.search.allocators import ALLOCATORS, NEED_TEXT, plan_for
from flashsvd.search.text_split import TextSplit
from flashsvd.session import Session
from flashsvd.tasks.encoding import Encoded, pad_batches

_BATCH = 32


def accuracy_curve(
    request: CurveRequest,
    session: Session | None = None,
    progress: Progress | None = None,
    on_point: Callable[[CurvePoint], None] | None = None,
) -> Curve:
    """Scores the allocator's plan at every keep on the same held-out pieces; the low-rank engine runs them.

    on_point: called with each point as it is measured.

    Raises:
        InputError: no keeps, one outside (0, 1], an unknown allocator, or calibration text needed where there is none.
        PlanError: the allocator has no plan that keeps so little.
        ModelError: the model has no evaluation set, or random weights.
    """
    report = progress or (lambda stage, share: None)
    session = session or Session()
    _check(request)
    started = time.perf_counter()
    report("Loading the model", 0.0)
    loaded = session.model(request.model, request.dtype, request.device, request.per_head)
    samples = evaluation_samples(loaded, request.samples, request.seed)
    if samples is None or not loaded.trained:
        raise ModelError(f"{loaded.name} has no held-out set to score: accuracy does not apply")
    batches = pad_batches(Encoded(samples.encoded, None, samples.labels), _BATCH, samples.pad_id)
    labels = torch.cat([batch["labels"] for batch in batches])
    method = method_named(request.method)
    spectra, decompositions = session.spectra(
        loaded, method.spec, lambda stage, share: report(stage, 0.02 + 0.08 * share), request.calibration
    )
    text = TextSplit.drawn(loaded, request.calibration) if request.allocator in NEED_TEXT else None
    steps = len(request.keeps) + 1

    def plan_at(words: str, step: int, keep: float) -> RankPlan:
        if request.allocator == "uniform" or keep == 1:
            return uniform(spectra.shape, keep)
        return plan_for(
            request.allocator,
            loaded,
            spectra,
            Budget.of_keep(spectra.shape, keep),
            Costs.parameters(),
            text,
            seed=request.calibration.seed,
            progress=lambda stage, share: report(f"{words}: {stage}", 0.1 + 0.9 * step / steps),
        ).plan

    def predict(words: str, step: int, model: Any) -> list[torch.Tensor]:
        return _predict(
            model, loaded, batches, lambda share: report(words, 0.1 + 0.9 * (step + share) / steps)
        )

    dense = predict("Scoring the dense model", 0, loaded.model)
    points = []
    for step, keep in enumerate(sorted(request.keeps), start=1):
        words = f"Keep {keep:.2f} ({step} of {steps - 1})"
        plan = plan_at(words, step, keep)
        model = build(loaded, "lowrank", factorise(loaded, spectra, plan), plan, method=method.spec)
        found = predict(words, step, model)
        apart = divergence(dense, found)
        point = CurvePoint(
            keep,
            plan.keep,
            plan.kept_parameters,
            plan.to_text(),
            accuracy_metric(torch.cat(found).argmax(-1).numpy(), labels.numpy(), seed=request.seed),
            kl_metric(apart, request.seed),
            agreement_metric(apart, request.seed),
        )
        points.append(point)
        if on_point:
            on_point(point)
    report("Done", 1.0)
    return Curve(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(loaded.device),
        model=model_info(loaded),
        method=method.spec,
        dtype=request.dtype,
        seed=request.seed,
        decompositions=decompositions,
        seconds=time.perf_counter() - started,
        dense=accuracy_metric(torch.cat(dense).argmax(-1).numpy(), labels.numpy(), seed=request.seed),
        points=tuple(points),
        calibration=request.calibration if method.needs or text else None,
        allocator=request.allocator,
    )


def _check(request: CurveRequest) -> None:
    if not request.keeps:
        raise InputError("keeps must hold at least one value")
    for keep in request.keeps:
        if not 0 < keep <= 1:
            raise InputError(f"keep must be above 0 and at most 1, got {keep:g}")
    if request.allocator not in ALLOCATORS:
        raise InputError(f"allocator must be one of {', '.join(ALLOCATORS)}, got {request.allocator!r}")
    if request.samples < 1:
        raise InputError(f"samples must be at least 1, got {request.samples}")


def _predict(
    model: Any, loaded: LoadedModel, batches: Sequence[Batch], tell: Callable[[float], None]
) -> list[torch.Tensor]:
    """Log-probabilities, batch by batch; `tell` hears the share done, also between layers."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done = count
        tell(done / len(batches))

    with checked_between_layers(model, loaded.family, lambda: tell(done / len(batches))):
        return log_probabilities(model, batches, advance)
