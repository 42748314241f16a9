"""Curves of several methods, one after another, and the latency and memory of their plans, timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import torch

from flashsvd.allocate import uniform
from flashsvd.curve import score_curve
from flashsvd.curve_set import CostTable, CurvePart, CurveSet, CurvesRequest, PlanCost, joined
from flashsvd.data import check_input_size, timing_ids
from flashsvd.engines.build import build, checked_between_layers, weight_bytes
from flashsvd.errors import InputError
from flashsvd.factors import factorise
from flashsvd.measure.latency import time_engines
from flashsvd.measure.machine import describe_machine
from flashsvd.measure.memory import allocator_peak_bytes, peak_activation_bytes, record_timeline
from flashsvd.measure.perplexity import is_causal
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import OWN_TEXT, Curve, CurvePoint
from flashsvd.session import Session

_REPEATS = 15
_SECONDS_PER_PLAN = 4.0
_TIMED_SHARE = 0.2


def score_curves(
    request: CurvesRequest,
    session: Session | None = None,
    progress: Progress | None = None,
    on_point: Callable[[CurvePart], None] | None = None,
) -> CurveSet:
    """`flashsvd.curve.score_curve` of every method and allocator; where `timed`, also what their plans cost to run.

    on_point: called with each point as it is measured.

    Raises:
        InputError: no methods, a batch or length that the model does not take.
        What `score_curve` raises.
    """
    report = progress or (lambda stage, share: None)
    session = session or Session()
    wanted = request.single()
    if not wanted:
        raise InputError("methods and allocators must each name at least one")
    for one in wanted:
        method_named(one.method)
    if request.timed:
        loaded = session.model(request.model, request.dtype, request.device, request.per_head)
        check_input_size(loaded, *request.timed)
    scoring = 1 - (_TIMED_SHARE if request.timed else 0)
    curves = []
    for index, one in enumerate(wanted):
        words = one.method + ("" if one.allocator == "uniform" else f", {one.allocator}")

        def tell(stage: str, share: float, index: int = index, words: str = words) -> None:
            report(f"{words}: {stage}", scoring * (index + share) / len(wanted))

        def emit(point: CurvePoint, method: str = one.method, allocator: str = one.allocator) -> None:
            if on_point:
                on_point(CurvePart(method, allocator, point))

        curves.append(score_curve(one, session, tell, emit))
    costs: tuple[CostTable, ...] = ()
    if request.timed:
        costs = (
            plan_costs(
                curves,
                request.timed,
                session,
                lambda stage, share: report(stage, scoring + _TIMED_SHARE * share),
                per_head=request.per_head,
                device=request.device,
            ),
        )
    report("Done", 1.0)
    return CurveSet(tuple(curves), costs)


def join_curves(
    request: CurvesRequest,
    pieces: Sequence[CurveSet],
    session: Session | None = None,
    progress: Progress | None = None,
) -> CurveSet:
    """The whole of a request whose pieces (`CurvesRequest.pieces`) were run apart; if asked, measures their plans."""
    report = progress or (lambda stage, share: None)
    curves = joined(curve for piece in pieces for curve in piece.curves)
    costs: tuple[CostTable, ...] = ()
    if request.timed:
        per_head, device = request.per_head, request.device
        costs = (
            plan_costs(curves, request.timed, session or Session(), report, per_head=per_head, device=device),
        )
    report("Done", 1.0)
    return CurveSet(curves, costs)


def plan_costs(
    curves: Sequence[Curve],
    timed: tuple[int, int],
    session: Session,
    report: Progress,
    *,
    per_head: bool = True,
    device: str = "auto",
) -> CostTable:
    """Latency and memory of every plan of curves of one model, at a batch and length, the dense model among them.

    The flash engine runs them, or low-rank where the family does not stream. All are timed in turn: a slow spell of the
    machine hits all alike.

    Raises:
        InputError: a batch or length that the model does not take.
    """
    batch, seq = timed
    first = curves[0]
    loaded = session.model(first.model.name, first.dtype, device, per_head)
    engine = "lowrank" if loaded.family.stream is None else "flash"
    ids = timing_ids(loaded, batch, seq, first.seed)
    models: dict[tuple[int, str], Any] = {}
    for curve in curves:
        method = method_named(curve.method)
        shape = method.shape(loaded.shape)
        spectra, _ = session.spectra(loaded, method.spec, None, curve.calibration or OWN_TEXT)
        for point in curve.points:
            key = (method.group, point.plan)
            if key in models:
                continue
            plan = RankPlan.from_text(shape, point.plan)
            models[key] = build(loaded, engine, factorise(loaded, spectra, plan), plan, method=method.spec)
    everything = {
        "dense": loaded.model,
        **{f"{group} {text}": model for (group, text), model in models.items()},
    }
    calls = {name: _forward(model, ids) for name, model in everything.items()}
    with ExitStack() as hooks:
        stage = [0.0]
        for model in everything.values():
            hooks.enter_context(
                checked_between_layers(model, loaded.family, lambda: report("Measuring memory", stage[0]))
            )
        peaks = {}
        for index, (name, model) in enumerate(everything.items()):
            stage[0] = 0.3 * index / len(everything)
            peaks[name] = _peak(model, calls[name], loaded)
    found = time_engines(
        calls,
        loaded.device,
        repeats=_REPEATS,
        budget_seconds=_SECONDS_PER_PLAN * len(calls),
        progress=lambda share: report(f"Timing {len(calls)} plans in turn", 0.3 + 0.7 * min(share, 1.0)),
    )

    def cost(name: str, plan: str, group: int, kind: str) -> PlanCost:
        return PlanCost(plan, group, kind, found[name][0], peaks[name], weight_bytes(everything[name]))

    return CostTable(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(loaded.device),
        model=loaded.name,
        per_head=per_head,
        batch=batch,
        seq=seq,
        dtype=first.dtype,
        repeats=min(done for _, done in found.values()),
        dense=cost("dense", uniform(loaded.shape, 1.0).to_text(), 1, "dense"),
        plans=tuple(cost(f"{group} {text}", text, group, engine) for group, text in models),
    )


def _forward(model: Any, ids: torch.Tensor) -> Callable[[], Any]:
    extra = {"use_cache": False, "logits_to_keep": 1} if is_causal(model) else {}

    @torch.inference_mode()
    def forward() -> Any:
        return model(input_ids=ids, **extra)

    return forward


def _peak(model: Any, forward: Callable[[], Any], loaded: LoadedModel) -> int:
    if loaded.device.type == "cuda":
        return allocator_peak_bytes(loaded.device, forward)
    return peak_activation_bytes(record_timeline(model, loaded.family.layers(model.base_model), forward))
