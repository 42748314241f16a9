"""How good a model is, dense, compressed on the spot or from a compressed folder: scores, perplexity, divergence."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import torch
from torch.nn.functional import log_softmax

from flashsvd.data import window_of
from flashsvd.engines.build import checked_between_layers
from flashsvd.errors import InputError
from flashsvd.evaluation.subject import LayerError, Subject, subject_of
from flashsvd.measure.divergence import Divergence, divergence
from flashsvd.measure.language import Text
from flashsvd.measure.machine import describe_machine
from flashsvd.measure.perplexity import Perplexity, check_causal
from flashsvd.measure.predictions import predict
from flashsvd.measure.scores import agreement_metric, kl_metric, task_metrics
from flashsvd.models.inputs import Batch
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress, Stage
from flashsvd.ranks import RankPlan
from flashsvd.results import Calibration, Machine, Metric, ModelInfo, PlanChoice
from flashsvd.session import Session
from flashsvd.tasks.base import Examples, Task, sample
from flashsvd.tasks.bundled import has_bundled
from flashsvd.tasks.encoding import batches, token_stream, tokenizer_of
from flashsvd.tasks.labels import is_classifier
from flashsvd.tasks.registry import task_named

HARNESS = "harness:"


@dataclass(frozen=True)
class EvaluateRequest:
    """What to score. `model` is a dense model or a compressed folder.

    task: see `flashsvd.tasks.task_named`, or harness:NAME; the model's own set by default. choice: the ranks to
    compress a dense model at; None scores it as it is. against: the dense model that predictions are compared with;
    where `choice` compresses one, that is it. samples: examples scored at most; of plain text, windows. window,
    stride: of perplexity, in tokens; the model's positions, up to 2048, and the window by default.
    """

    model: str
    task: str | None = None
    choice: PlanChoice | None = None
    method: str = "svd"
    per_head: bool = True
    dtype: str = "fp32"
    device: str = "auto"
    samples: int = 512
    batch: int = 32
    seed: int = 0
    against: str | None = None
    window: int | None = None
    stride: int | None = None
    calibration: Calibration = field(default_factory=Calibration)


@dataclass(frozen=True)
class TaskInfo:
    """What was scored on. The split is always the validation one."""

    name: str
    title: str
    source: str
    kind: Literal["classification", "regression", "language", "harness"]


@dataclass(frozen=True)
class Evaluation:
    """`created` is UTC, ISO 8601. scores: the headline metric first. kl, agreement: with the dense model `against`,
    over sequences of a classifier or tokens of a language model. layer_errors: the worst five, of a model compressed
    on the spot. n: examples, or tokens of plain text. plan, method: None where nothing is factored. calibration: what a
    data-aware method looked at.
    """

    created: str
    machine: Machine
    model: ModelInfo
    task: TaskInfo
    method: str | None
    plan: RankPlan | None
    dtype: str
    seed: int
    scores: tuple[Metric, ...]
    perplexity: Perplexity | None
    against: str | None
    kl: Metric | None
    agreement: Metric | None
    layer_errors: tuple[LayerError, ...]
    n: int
    decompositions: int
    seconds: float
    calibration: Calibration | None = None


@dataclass(frozen=True)
class _Found:
    scores: tuple[Metric, ...]
    perplexity: Perplexity | None = None
    apart: Divergence | None = None


def evaluate(
    request: EvaluateRequest, session: Session | None = None, progress: Progress | None = None
) -> Evaluation:
    """Scores a model on the validation split of a task, and compares it with its dense model where there is one.

    Raises:
        InputError, PlanError: a number, task or plan that does not fit the model.
        ModelError: random weights, or a model or its own sets that cannot be read.
        NonFiniteError: an output is not finite; no example is skipped.
    """
    started = time.perf_counter()
    _check(request)
    stage = Stage(progress or (lambda words, share: None))
    subject = subject_of(request, session or Session(), stage.begin, lambda loaded: _chosen(request, loaded))
    loaded, task = subject.loaded, subject.task
    with ExitStack() as hooks:
        for model in (subject.model, subject.dense):
            if model is not None:
                hooks.enter_context(checked_between_layers(model, loaded.family, stage.tick))
        if task is None:
            found = _harness(request, subject, stage)
            about = TaskInfo(str(request.task), str(request.task), "lm-eval", "harness")
        else:
            found = (_language if task.kind == "language" else _labelled)(request, task, subject, stage)
            about = TaskInfo(task.name, task.title, task.source, task.kind)
    stage.begin("Done", 1.0)
    apart = found.apart
    return Evaluation(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(loaded.device),
        model=subject.info,
        task=about,
        method=subject.method,
        plan=subject.plan,
        dtype=request.dtype,
        seed=request.seed,
        scores=found.scores,
        perplexity=found.perplexity,
        against=None if apart is None else subject.against,
        kl=None if apart is None else kl_metric(apart, request.seed, found.scores[0].counted),
        agreement=None if apart is None else agreement_metric(apart, request.seed, found.scores[0].counted),
        layer_errors=subject.errors,
        n=max((metric.n for metric in found.scores), default=0),
        decompositions=subject.decompositions,
        seconds=time.perf_counter() - started,
        calibration=request.calibration if subject.calibrated else None,
    )


def _check(request: EvaluateRequest) -> None:
    for name in ("samples", "batch"):
        if getattr(request, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(request, name)}")
    for name in ("window", "stride"):
        if getattr(request, name) is not None and getattr(request, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(request, name)}")
    if request.seed < 0:
        raise InputError(f"seed must be at least 0, got {request.seed}")


def _chosen(request: EvaluateRequest, loaded: LoadedModel) -> tuple[Task | None, Examples | None]:
    """The task and what is scored of it, before any work that takes long; None and None for the harness."""
    if (request.task or "").startswith(HARNESS):
        check_causal(loaded.model)
        return None, None
    if request.task is None and not has_bundled(loaded):
        raise InputError(
            f"{loaded.name} has no sets of its own: name a task, such as glue/sst2, wikitext-2, text:PATH or a file"
        )
    task = task_named(request.task or "bundled", loaded)
    tokenizer_of(loaded)
    if task.kind == "language":
        check_causal(loaded.model)
        return task, task.load("validation")
    if not is_classifier(loaded):
        raise InputError(
            f"{task.name} wants labels of whole texts, which a {type(loaded.model).__name__} does not give; "
            "score it on plain text, such as wikitext-2 or text:PATH"
        )
    return task, sample(task.load("validation"), request.samples, request.seed)


def _labelled(request: EvaluateRequest, task: Task, subject: Subject, stage: Stage) -> _Found:
    assert subject.examples is not None
    found = batches(subject.examples, subject.loaded, request.batch)
    labels = torch.cat([batch["labels"] for batch in found])
    outputs = _outputs(subject.model, found, stage.share(f"Scoring {len(labels)} examples", 0.3, 0.65))
    scores = task_metrics(task, outputs.numpy(), labels.numpy(), seed=request.seed)
    if subject.dense is None or task.kind == "regression":
        return _Found(scores)
    dense = _outputs(subject.dense, found, stage.share("Running the dense model", 0.65, 1.0))
    if dense.shape != outputs.shape:
        raise InputError(
            f"{subject.against} gives {dense.shape[1]} classes and {subject.info.name} {outputs.shape[1]}: "
            "compare models of one task"
        )
    return _Found(scores, apart=divergence([log_softmax(dense, -1)], [log_softmax(outputs, -1)]))


def _outputs(model: Any, found: Sequence[Batch], tell: Callable[[float], None]) -> torch.Tensor:
    """Logits [n, classes] in the order of the batches."""
    return torch.cat(predict(model, found, lambda done: tell(done / len(found))))


def _language(request: EvaluateRequest, task: Task, subject: Subject, stage: Stage) -> _Found:
    assert subject.examples is not None
    window = request.window or window_of(subject.loaded)
    stride = request.stride or window
    tokens = token_stream(subject.examples, tokenizer_of(subject.loaded))
    tokens = tokens[: window + (request.samples - 1) * stride + 1]
    text = Text(tokens, subject.dense, window=window, stride=stride, batch=request.batch, seed=request.seed)
    tell = stage.share(f"Perplexity of {len(tokens)} tokens", 0.3, 1.0)
    if subject.dense is None:
        found, apart = text.perplexity(subject.model, tell), None
    else:
        found, apart = text.beside_dense(subject.model, tell)
    return _Found((found.metric(request.seed),), found, apart)


def _harness(request: EvaluateRequest, subject: Subject, stage: Stage) -> _Found:
    from flashsvd.evaluation.harness import run_harness

    stage.begin(f"Running {request.task}", 0.3)

    names = str(request.task).removeprefix(HARNESS).split(",")
    return _Found(
        run_harness(
            subject.model,
            tokenizer_of(subject.loaded),
            names,
            limit=request.samples,
            batch=request.batch,
            seed=request.seed,
            max_length=window_of(subject.loaded),
        )
    )
