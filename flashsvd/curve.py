"""What the rank costs: accuracy against keep, one decomposition per matrix for the whole curve."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from flashsvd.allocate import uniform
from flashsvd.compare import model_info
from flashsvd.data import evaluation_samples
from flashsvd.engines.build import build, checked_between_layers
from flashsvd.errors import InputError, ModelError
from flashsvd.factors import factorise
from flashsvd.measure.accuracy import measure_accuracy
from flashsvd.measure.machine import describe_machine
from flashsvd.results import Curve, CurvePoint, CurveRequest, Metric
from flashsvd.session import Session
from flashsvd.spectra import Progress


def accuracy_curve(
    request: CurveRequest,
    session: Session | None = None,
    progress: Progress | None = None,
    on_point: Callable[[CurvePoint], None] | None = None,
) -> Curve:
    """Scores the uniform plan at every keep on the same held-out pieces; the low-rank engine runs them.

    on_point: called with each point as it is measured.

    Raises:
        InputError: no keeps, or one outside (0, 1].
        ModelError: the model has no evaluation set, or random weights.
    """
    report = progress or (lambda stage, share: None)
    session = session or Session()
    if not request.keeps:
        raise InputError("keeps must hold at least one value")
    for keep in request.keeps:
        if not 0 < keep <= 1:
            raise InputError(f"keep must be above 0 and at most 1, got {keep:g}")
    if request.samples < 1:
        raise InputError(f"samples must be at least 1, got {request.samples}")
    started = time.perf_counter()
    report("Loading the model", 0.0)
    loaded = session.model(request.model, request.dtype, request.device, request.per_head)
    samples = evaluation_samples(loaded, request.samples, request.seed)
    if samples is None or not loaded.trained:
        raise ModelError(f"{loaded.name} has no held-out set to score: accuracy does not apply")
    spectra, decompositions = session.spectra(
        loaded, request.method, lambda stage, share: report(stage, 0.02 + 0.08 * share)
    )
    steps = len(request.keeps) + 1

    def score(words: str, step: int, model: object) -> Metric:
        def tell(share: float) -> None:
            report(words, 0.1 + 0.9 * (step + share) / steps)

        with checked_between_layers(model, loaded.family, lambda: report(words, 0.1 + 0.9 * step / steps)):
            return measure_accuracy(
                model,
                samples.encoded,
                samples.labels,
                pad_id=samples.pad_id,
                seed=request.seed,
                progress=tell,
            )

    dense = score("Scoring the dense model", 0, loaded.model)
    points = []
    for step, keep in enumerate(sorted(request.keeps), start=1):
        plan = uniform(loaded.shape, keep)
        model = build(loaded, "lowrank", factorise(loaded, spectra, plan), plan, method=request.method)
        metric = score(f"Scoring keep {keep:.2f} ({step} of {steps - 1})", step, model)
        point = CurvePoint(keep, plan.keep, plan.kept_parameters, plan.to_text(), metric)
        points.append(point)
        if on_point:
            on_point(point)
    report("Done", 1.0)
    return Curve(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(loaded.device),
        model=model_info(loaded),
        method=request.method,
        dtype=request.dtype,
        seed=request.seed,
        decompositions=decompositions,
        seconds=time.perf_counter() - started,
        dense=dense,
        points=tuple(points),
    )
