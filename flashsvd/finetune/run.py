"""FinetuneRequest -> a trained model in a folder, and the report of how it went."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flashsvd.compare import model_info
from flashsvd.engines.compressed import is_compressed
from flashsvd.errors import Cancelled, FlashSVDError, InputError
from flashsvd.factors import factorise
from flashsvd.finetune import folder, students
from flashsvd.finetune.batches import TrainingOrder, collator, encode
from flashsvd.finetune.request import EvaluationPoint, FinetuneReport, FinetuneRequest, Settings, settle
from flashsvd.finetune.scoring import scorer
from flashsvd.measure.machine import describe_machine
from flashsvd.models.companions import save_companions
from flashsvd.models.load import LoadedModel, load, pick_device, quiet
from flashsvd.models.sources import resolve
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import Metric, from_json, to_json
from flashsvd.session import Session
from flashsvd.tasks.base import Examples, Task, sample
from flashsvd.tasks.bundled import has_bundled
from flashsvd.tasks.labels import is_classifier
from flashsvd.tasks.registry import task_named


def finetune(
    request: FinetuneRequest, session: Session | None = None, progress: Progress | None = None
) -> FinetuneReport:
    """Trains, and writes the model, its tokenizer and finetune.json to `request.out`, which changes in one move.

    The validation split is scored before the first step, now and then, and after the last; nothing is chosen by it.

    Raises:
        InputError: a value outside its range, a folder that must not be replaced, a task that does not fit the model.
        Cancelled: interrupted; the message names the checkpoint to go on from.
        FlashSVDError: the loss is not finite.
    """
    tell = progress or (lambda stage, share: None)
    _check_installed()
    device = pick_device(request.device)
    if (device.index or 0) > 0:
        raise InputError(
            f"training runs on the first GPU, got {request.device}: set CUDA_VISIBLE_DEVICES and use cuda"
        )
    out = Path(request.out)
    folder.check(out, request)
    started = time.perf_counter()
    tell("Loading the model", 0.0)
    start = _start(request, session or Session(), tell)
    examples = start.task.load("train")
    settings = settle(
        request,
        factors=start.plan is not None,
        teacher=start.teacher is not None,
        examples=len(examples),
        can_mask=start.loaded.tokenizer is not None and start.loaded.tokenizer.mask_token_id is not None,
    )
    trained = students.set_trainable(start.student, "everything" if start.plan is None else request.train)
    score = _scorer(start, request)
    trainer = _trainer(request, settings, start, examples, score, lambda w, s: tell(w, 0.1 + 0.85 * s))
    folder.begin(out, request)
    checkpoint = folder.last_checkpoint(out)
    try:
        dense, before = _scores_before(out, start, score, tell)
        with quiet():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except (KeyboardInterrupt, Cancelled):
        raise Cancelled(_stopped(out, settings)) from None
    curve = trainer.evaluations()
    if not curve or curve[-1].step != settings.steps:
        tell("Scoring the trained model", 0.95)
        curve = (*curve, EvaluationPoint(settings.steps, score(start.student)))
    report = FinetuneReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(device),
        request=request,
        settings=settings,
        model=model_info(start.loaded),
        mode="dense" if start.plan is None else "factors",
        plan=start.plan,
        trained_parameters=trained,
        train_examples=len(examples),
        dense=dense,
        before=before,
        after=curve[-1].metric,
        curve=(EvaluationPoint(0, before), *curve),
        losses=trainer.losses(),
        resumed_from=folder.step_of(checkpoint) if checkpoint else 0,
        seconds=time.perf_counter() - started,
    )
    _publish(start, report, out)
    tell("Done", 1.0)
    return report


def report_json(report: FinetuneReport) -> dict[str, Any]:
    """The report as plain objects, with the share that was recovered."""
    return {**to_json(report), "recovered": report.recovered}


@dataclass(frozen=True)
class _Start:
    """What a run begins with. `plan` is None where a dense model is trained."""

    loaded: LoadedModel
    task: Task
    student: Any
    teacher: Any
    plan: RankPlan | None


def _check_installed() -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise InputError("training needs the package accelerate: pip install 'flashsvd[finetune]'")


def _start(request: FinetuneRequest, session: Session, tell: Progress) -> _Start:
    source = resolve(request.model)
    if is_compressed(source):
        return _from_compressed(request, session)
    if request.teacher is not None:
        raise InputError(f"{request.model} is dense and is its own teacher: leave teacher out")
    if request.choice is None:
        return _dense(request)
    return _from_cut(request, session, tell)


def _dense(request: FinetuneRequest) -> _Start:
    loaded = _with_tokenizer(load(request.model, device=pick_device(request.device)), request.tokenizer)
    new_head = request.new_head or not loaded.trained or not is_classifier(loaded)
    task = _task(request, loaded, new_head=new_head)
    student = students.classifier(loaded, task.classes, seed=request.seed)
    return _Start(replace(loaded, model=student), task, student, None, None)


def _from_cut(request: FinetuneRequest, session: Session, tell: Progress) -> _Start:
    assert request.choice is not None
    whole = request.choice.plan
    per_head = request.per_head if whole is None else whole.shape.per_head
    loaded = session.model(request.model, "fp32", request.device, per_head)
    if not loaded.trained:
        raise InputError(
            f"{loaded.name} has random weights, there is nothing to recover: train it first, without ranks"
        )
    loaded = _with_tokenizer(loaded, request.tokenizer)
    task = _task(request, loaded)
    calibration = request.calibration
    if calibration.text is None and not has_bundled(loaded):
        calibration = replace(calibration, text=request.task)
    spectra, _ = session.spectra(
        loaded, request.method, lambda words, share: tell(words, 0.05 * share), calibration
    )
    plan = request.choice.resolve(spectra.shape)
    student = students.cut(loaded, factorise(loaded, spectra, plan), plan, request.method)
    return _Start(loaded, task, student, loaded.model, plan)


def _from_compressed(request: FinetuneRequest, session: Session) -> _Start:
    if request.choice is not None:
        raise InputError(f"{request.model} is already compressed: leave the ranks out to train its factors")
    loaded, plan = students.reopen(resolve(request.model), pick_device(request.device))
    if request.teacher is None:
        loaded = _with_tokenizer(loaded, request.tokenizer)
        return _Start(loaded, _task(request, loaded), loaded.model, None, plan)
    dense = session.model(request.teacher, "fp32", request.device, True)
    plan.check_fits(dense.shape)
    loaded = _with_tokenizer(
        replace(loaded, tokenizer=loaded.tokenizer or dense.tokenizer), request.tokenizer
    )
    # The teacher's own sets are the student's, too.
    task = _task(request, dense)
    if loaded.model.config.id2label != dense.model.config.id2label:
        raise InputError(
            f"{request.teacher} names other classes than {request.model}: name the model that was cut"
        )
    return _Start(loaded, task, loaded.model, dense.model, plan)


def _task(request: FinetuneRequest, loaded: LoadedModel, *, new_head: bool = False) -> Task:
    if request.new_head and not new_head:
        raise InputError("new_head is for a dense training: a cut keeps the head of its model")
    if not new_head and not is_classifier(loaded):
        raise InputError(
            f"{loaded.name} gives no labels to sequences: train it on the task first, without ranks"
        )
    task = task_named(request.task, loaded, new_head=new_head)
    if task.kind == "language":
        raise InputError(f"task {request.task} has no labels: choose one with labels, such as glue/sst2")
    return task


def _with_tokenizer(loaded: LoadedModel, name: str | None) -> LoadedModel:
    if name is not None:
        loaded = replace(
            loaded,
            tokenizer=students.read_tokenizer(name, getattr(loaded.model.config, "type_vocab_size", 0)),
        )
    if loaded.tokenizer is None:
        raise InputError(
            f"{loaded.name} has no tokenizer: name a folder that has one with --tokenizer FOLDER"
        )
    rows = loaded.model.config.vocab_size
    if len(loaded.tokenizer) > rows:
        raise InputError(
            f"the tokenizer has {len(loaded.tokenizer)} tokens but {loaded.name} has {rows}: they do not fit"
        )
    return loaded


def _scores_before(
    out: Path, start: _Start, score: Callable[[Any], Metric], tell: Progress
) -> tuple[Metric | None, Metric]:
    kept = folder.kept_before(out)
    if kept is not None:
        dense = kept["dense"]
        return dense and from_json(Metric, dense), from_json(Metric, kept["before"])
    dense_score = None
    if start.teacher is not None:
        tell("Scoring the dense model", 0.05)
        dense_score = score(start.teacher)
    tell("Scoring before training", 0.08)
    before = score(start.student)
    folder.keep_before(out, {"dense": to_json(dense_score), "before": to_json(before)})
    return dense_score, before


def _trainer(
    request: FinetuneRequest,
    settings: Settings,
    start: _Start,
    examples: Examples,
    score: Callable[[Any], Metric],
    tell: Progress,
) -> Any:
    from flashsvd.finetune.trainer import FactorTrainer

    tokenizer = start.loaded.tokenizer
    assert tokenizer is not None
    order = TrainingOrder(
        encode(examples, tokenizer, _max_length(request, start.loaded)),
        steps=settings.steps,
        batch=settings.batch,
        seed=settings.seed,
        mask=settings.mask,
        crop=settings.crop,
        mask_id=tokenizer.mask_token_id,
    )
    with quiet():
        return FactorTrainer(
            start.student,
            settings=settings,
            teacher=start.teacher,
            train=order,
            collate=collator(tokenizer.pad_token_id or 0),
            score=score,
            checkpoints=folder.checkpoints(Path(request.out)),
            progress=tell,
        )


def _scorer(start: _Start, request: FinetuneRequest) -> Callable[[Any], Metric]:
    """Scores any model on the validation split, or on a sample of it that is the same every time."""
    examples = start.task.load("validation")
    if request.samples is not None:
        examples = sample(examples, request.samples, request.seed)
    return scorer(start.task, examples, start.loaded, _max_length(request, start.loaded), request.seed)


def _max_length(request: FinetuneRequest, loaded: LoadedModel) -> int:
    limit = loaded.shape.max_positions
    if request.max_length is not None and request.max_length > limit:
        raise InputError(f"max_length must be at most {limit} (the positions of {loaded.name})")
    return request.max_length or limit


def _stopped(out: Path, settings: Settings) -> str:
    last = folder.last_checkpoint(out)
    where = "before the first checkpoint" if last is None else f"after checkpoint {folder.step_of(last)}"
    return f"stopped {where} of {settings.steps} steps: repeat the command with --resume to go on"


def _publish(start: _Start, report: FinetuneReport, out: Path) -> None:
    start.student.eval().requires_grad_(False)
    try:
        with folder.published(out, keep_checkpoints=report.request.keep_checkpoints) as partial, quiet():
            start.student.save_pretrained(partial)
            save_companions(start.loaded, partial)
            (partial / folder.REPORT).write_text(json.dumps(report_json(report), indent=2), encoding="utf-8")
    except OSError as error:
        raise FlashSVDError(f"cannot write {out}: {error}; the checkpoints are still there") from None
