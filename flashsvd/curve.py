"""What the rank costs: score and divergence against keep, one decomposition per matrix for the whole curve."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from flashsvd.allocate import Budget, Costs, uniform
from flashsvd.compare import model_info
from flashsvd.engines.build import build, checked_between_layers
from flashsvd.errors import InputError
from flashsvd.evaluation.held_out import Tell, held_out
from flashsvd.evaluation.task_held_out import held_out_on
from flashsvd.factors import factorise
from flashsvd.measure.machine import describe_machine
from flashsvd.methods import method_named
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import Curve, CurvePoint, CurveRequest
from flashsvd.search.allocators import ALLOCATORS, NEED_TEXT, plan_for
from flashsvd.search.text_split import TextSplit
from flashsvd.session import Session

Scores = TypeVar("Scores")


def score_curve(
    request: CurveRequest,
    session: Session | None = None,
    progress: Progress | None = None,
    on_point: Callable[[CurvePoint], None] | None = None,
) -> Curve:
    """Scores the allocator's plan at every keep; the low-rank engine runs them.

    Scored is the model's held-out set, or the validation split of the task that the request names.

    The score is the accuracy of a classifier and the perplexity of a language model.

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
    if request.task is None:
        held = held_out(loaded, request.samples, request.seed)
    else:
        held = held_out_on(loaded, request.task, request.samples, request.seed)
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

    def heard(run: Callable[[Any, Tell], Scores], model: Any, words: str, step: int) -> Scores:
        """Reports the share done, also between layers."""
        done = 0.0

        def tell(share: float) -> None:
            nonlocal done
            done = share
            report(words, 0.1 + 0.9 * (step + share) / steps)

        with checked_between_layers(model, loaded.family, lambda: tell(done)):
            return run(model, tell)

    dense = heard(held.score, loaded.model, "Scoring the dense model", 0)
    points = []
    for step, keep in enumerate(sorted(request.keeps), start=1):
        words = f"Keep {keep:.2f} ({step} of {steps - 1})"
        plan = plan_at(words, step, keep)
        model = build(loaded, "lowrank", factorise(loaded, spectra, plan), plan, method=method.spec)
        found = heard(held.beside_dense, model, words, step)
        point = CurvePoint(
            keep,
            plan.keep,
            plan.kept_parameters,
            plan.to_text(),
            found.metric,
            found.kl,
            found.agreement,
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
        dense=dense,
        points=tuple(points),
        calibration=request.calibration if method.needs or text else None,
        allocator=request.allocator,
        task=request.task,
    )


def _check(request: CurveRequest) -> None:
    if not request.keeps:
        raise InputError("keeps must hold at least one value")
    for keep in request.keeps:
        if not 0 < keep <= 1:
            raise InputError(f"keep must be above 0 and at most 1, got {keep:g}")
    if request.allocator not in ALLOCATORS:
        raise InputError(f"allocator must be one of {', '.join(ALLOCATORS)}, got {request.allocator!r}")
    if request.samples is not None and request.samples < 1:
        raise InputError(f"samples must be at least 1, got {request.samples}")
