"""One model, one plan, several engines on the same input: latency, memory, score, and whether they agree."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import torch

from flashsvd.data import check_input_size, timing_ids
from flashsvd.devices import available_bytes
from flashsvd.engines.build import build, check_engine, checked_between_layers, weight_bytes
from flashsvd.engines.stream import check_streams
from flashsvd.errors import InputError, OutOfMemoryError
from flashsvd.evaluation.held_out import can_score, held_out
from flashsvd.factors import factorise
from flashsvd.kernels.backend import choose
from flashsvd.measure.fidelity import check_input, judge, outputs, reference_outputs, worst_error
from flashsvd.measure.latency import time_engines
from flashsvd.measure.machine import describe_machine
from flashsvd.measure.memory import allocator_peak_bytes, peak_activation_bytes, record_timeline
from flashsvd.measure.perplexity import is_causal
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import CompareRequest, Comparison, EngineRun, Metric, ModelInfo
from flashsvd.session import Session

_NO_ENGINE_TAKES_SO_MANY_TIMES_ANOTHER = 16
_WARM_CALLS = 3
_TIMING_SECONDS = {"cpu": 2.0, "cuda": 20.0}


def compare(
    request: CompareRequest,
    session: Session | None = None,
    progress: Progress | None = None,
    early: Callable[[Comparison], None] | None = None,
) -> Comparison:
    """Runs every engine that the request names on one batch, and scores each on the model's held-out set.

    progress: called often, also between layers; may raise Cancelled. early: hears what is there so far, first all but
    the scores, which take longest, then with each of them but the last.

    Raises:
        InputError, PlanError, ModelError, CheckpointError, DeviceError: see where each is made.
        OutOfMemoryError: the batch does not fit; nothing is left allocated.
    """
    report = progress or _silent
    session = session or Session()
    _check(request)
    report("Loading the model", 0.0)
    given = request.choice.plan
    per_head = request.per_head if given is None else given.shape.per_head
    loaded = session.model(request.model, request.dtype, request.device, per_head)
    if "flash" in request.engines:
        check_streams(loaded.family)
    check_input_size(loaded, request.batch, request.seq)
    plan = request.choice.resolve(method_named(request.method).shape(loaded.shape))
    spectra, decompositions = session.spectra(
        loaded, request.method, lambda stage, share: report(stage, 0.02 + 0.18 * share), request.calibration
    )
    factors = factorise(loaded, spectra, plan)
    report("Building the engines", 0.2)
    names = list(dict.fromkeys((*request.engines, "lowrank")))
    models = {name: build(loaded, name, factors, plan, method=request.method) for name in names}
    stage = _Stage(report)
    with ExitStack() as hooks:
        for model in models.values():
            hooks.enter_context(checked_between_layers(model, loaded.family, stage.tick))
        try:
            found = _measure(request, loaded, plan, models, decompositions, stage)
            if can_score(loaded):
                found = _scored(request, loaded, models, found, session, stage, early or _unheard)
            stage.begin("Done", 1.0)
            return found
        except torch.OutOfMemoryError:
            # Raised anew outside the handler: the traceback would keep the run's tensors alive.
            pass
    raise OutOfMemoryError(_what(request), stage.needed_bytes, available_bytes(loaded.device))


def _measure(
    request: CompareRequest,
    loaded: LoadedModel,
    plan: RankPlan,
    models: dict[str, Any],
    decompositions: int,
    stage: _Stage,
) -> Comparison:
    device, family = loaded.device, loaded.family
    blocks = {name: family.layers(model.base_model) for name, model in models.items()}
    asked = [name for name in models if name in request.engines]

    stage.begin("Checking that it fits", 0.21)
    _check_fits(request, loaded, models, blocks, asked, stage)
    ids = timing_ids(loaded, request.batch, request.seq, request.seed)
    calls = {name: _call(models[name], ids) for name in asked}

    stage.begin("Checking the engines against each other", 0.25)
    small, mask = check_input(ids)
    found = {name: outputs(model, family, small, mask) for name, model in models.items()}
    reference, reference_name = reference_outputs(models["lowrank"], family, small, mask)

    if device.type == "cuda":
        stage.begin("Warming up", 0.28)
        # What is compiled, tuned and kept with the first calls belongs to no recording and no time.
        for call in calls.values():
            for _ in range(_WARM_CALLS):
                call()
    timelines, peaks = {}, {}
    for index, name in enumerate(asked):
        stage.begin(f"Recording the memory of {name}", 0.3 + 0.05 * index / len(asked))
        timelines[name] = record_timeline(models[name], blocks[name], calls[name])
        peaks[name] = (
            allocator_peak_bytes(device, calls[name])
            if device.type == "cuda"
            else peak_activation_bytes(timelines[name])
        )

    stage.begin("Timing", 0.35)
    latency = time_engines(
        calls,
        device,
        repeats=request.repeats,
        budget_seconds=_TIMING_SECONDS[device.type],
        progress=lambda share: stage.begin("Timing", 0.35 + 0.15 * share),
        # Each has just run this very batch.
        warm=0,
    )
    runs = [
        EngineRun(
            engine=name,
            backend=choose(device) if name == "flash" else "torch",
            latency_ms=latency[name][0],
            repeats=latency[name][1],
            peak_activation_bytes=peaks[name],
            weight_bytes=weight_bytes(models[name]),
            metric=None,
            error_vs_lowrank=worst_error(found[name], found["lowrank"]),
            gate=judge(
                found[name],
                found["lowrank"],
                reference,
                name=reference_name,
                dtype=loaded.model.dtype,
                sublayers=2 * len(blocks[name]),
            )
            if name == "flash"
            else None,
            timeline=timelines[name],
        )
        for name in asked
    ]
    return Comparison(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(device),
        model=model_info(loaded),
        method=request.method,
        plan=plan,
        batch=request.batch,
        seq=request.seq,
        dtype=request.dtype,
        seed=request.seed,
        decompositions=decompositions,
        runs=tuple(runs),
    )


def _scored(
    request: CompareRequest,
    loaded: LoadedModel,
    models: dict[str, Any],
    found: Comparison,
    session: Session,
    stage: _Stage,
    early: Callable[[Comparison], None],
) -> Comparison:
    """The same with scores, which are kept; early hears it before each of them.

    Low-rank is not scored where flash was found to give the same: its score is that of the factors, too.
    """
    held = held_out(loaded, request.samples, request.seed)
    flash = found.run("flash")
    alike = flash is not None and flash.gate is not None and flash.gate.passed
    names = [run.engine for run in found.runs if not (alike and run.engine == "lowrank")]
    span = 0.5 / len(names)

    def score(index: int, name: str) -> Metric:
        words = f"Scoring {name} on {held.words}"
        return held.score(models[name], lambda share: stage.begin(words, 0.5 + span * (index + share)))

    for index, name in enumerate(names):
        early(found)
        make = functools.partial(score, index, name)
        # What the gate failed is scored again each time: a kernel may be mended.
        sure = name != "flash" or alike
        metric = session.score(models[name], name, held, make) if sure else make()
        runs = (dataclasses.replace(run, metric=metric) if run.engine == name else run for run in found.runs)
        found = dataclasses.replace(found, runs=tuple(runs))
    return found


def model_info(loaded: LoadedModel) -> ModelInfo:
    """What a result says of the model that it is about."""
    return ModelInfo(loaded.name, loaded.source.kind, loaded.trained, loaded.parameters, loaded.shape)


class _Stage:
    """The current stage, repeated between layers so that a cancel is heard during long forwards."""

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._now = ("", 0.0)
        self.needed_bytes: int | None = None

    def begin(self, words: str, share: float) -> None:
        self._now = (words, min(share, 1.0))
        self.tick()

    def tick(self) -> None:
        self._report(*self._now)


def _silent(stage: str, share: float) -> None:
    """No progress wanted."""


def _unheard(_: Comparison) -> None:
    """Nothing early wanted."""


def _check(request: CompareRequest) -> None:
    if not request.engines:
        raise InputError("engines must name at least one of dense, lowrank, flash")
    for engine in request.engines:
        check_engine(engine)
    for name in ("batch", "samples", "repeats"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")


def _call(model: Any, ids: torch.Tensor) -> Callable[[], Any]:
    """What is timed: a forward, of a causal model up to the next token, as a prompt is read.

    The logits of every token of a prompt would be most of the memory of a small model, the same for every engine.
    """
    extra = {"use_cache": False, "logits_to_keep": 1} if is_causal(model) else {}

    @torch.inference_mode()
    def forward() -> Any:
        return model(input_ids=ids, **extra)

    return forward


def _check_fits(
    request: CompareRequest,
    loaded: LoadedModel,
    models: dict[str, Any],
    blocks: dict[str, list[torch.nn.Module]],
    asked: list[str],
    stage: _Stage,
) -> None:
    """Measures a batch of one and multiplies: what a forward takes grows at most with the batch.

    A CPU grants memory it does not have and then kills the process, so this has to be asked before. Where the first
    engine needs next to nothing of what is free, the others are not asked: none takes so many times as much.
    """
    single = timing_ids(loaded, 1, request.seq, request.seed)
    free = available_bytes(loaded.device)
    for name in asked:
        one = peak_activation_bytes(record_timeline(models[name], blocks[name], _call(models[name], single)))
        needed = one * request.batch
        stage.needed_bytes = max(stage.needed_bytes or 0, needed)
        if needed > free:
            raise OutOfMemoryError(f"{_what(request)} on the {name} engine", needed, free)
        if needed * _NO_ENGINE_TAKES_SO_MANY_TIMES_ANOTHER < free:
            return


def _what(request: CompareRequest) -> str:
    return f"batch {request.batch} x {request.seq} tokens of {request.model}"
