"""What a training run is asked to do and what it reports. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from flashsvd.errors import InputError
from flashsvd.ranks import RankPlan
from flashsvd.results import Calibration, Machine, Metric, ModelInfo, PlanChoice, to_json

TRAINABLE = ("factors", "all")

_PLACE = ("out", "device", "force", "resume", "keep_checkpoints")


@dataclass(frozen=True)
class FinetuneRequest:
    """A training run. A field that is None takes the default of its mode (`Settings`).

    choice: the ranks of the cut; None trains a dense model, or the factors of a MODEL that is a compressed folder.
    A whole plan decides `per_head` itself.
    calibration: for methods that look at data; the task's training split where the model has no set of its own.
    train: "factors" (every U and V) or "all" (biases, norms, head and the linears that stayed dense, too; not the
    embeddings). teacher: the dense model to learn from where MODEL is a compressed folder. distill, hidden, labels:
    weights of the three losses (`flashsvd.finetune.losses`). mask, crop: see `flashsvd.finetune.batches`. samples:
    validation examples to score at most. new_head: put a new head in the place of one for other classes.
    """

    model: str
    out: str
    task: str
    choice: PlanChoice | None = None
    method: str = "svd"
    calibration: Calibration = field(default_factory=Calibration)
    per_head: bool = True
    train: str = "factors"
    teacher: str | None = None
    tokenizer: str | None = None
    new_head: bool = False
    distill: float | None = None
    hidden: float | None = None
    labels: float | None = None
    temperature: float = 2.0
    epochs: float | None = None
    steps: int | None = None
    batch: int = 16
    lr: float | None = None
    max_length: int | None = None
    mask: float | None = None
    crop: float | None = None
    eval_every: int | None = None
    samples: int | None = None
    seed: int = 0
    device: str = "auto"
    force: bool = False
    resume: bool = False
    keep_checkpoints: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for a value outside its range."""
        if self.train not in TRAINABLE:
            raise InputError(f"train must be one of {', '.join(TRAINABLE)}, got {self.train!r}")
        if self.epochs is not None and self.steps is not None:
            raise InputError("give epochs or steps, got both")
        for name in ("steps", "batch", "eval_every", "samples"):
            _check(name, getattr(self, name), "at least 1", lambda value: value >= 1)
        _check("max_length", self.max_length, "at least 8", lambda value: value >= 8)
        _check("seed", self.seed, "at least 0", lambda value: value >= 0)
        for name in ("epochs", "lr", "temperature"):
            _check(name, getattr(self, name), "above 0", lambda value: value > 0)
        for name in ("distill", "hidden", "labels"):
            _check(name, getattr(self, name), "at least 0", lambda value: value >= 0)
        _check("mask", self.mask, "from 0 to below 1", lambda value: 0 <= value < 1)
        _check("crop", self.crop, "above 0 and at most 1", lambda value: 0 < value <= 1)
        if self.resume and self.force:
            raise InputError("give resume or force, got both: one goes on, the other starts again")

    def training(self) -> dict[str, Any]:
        """As plain objects, what decides the outcome: everything but where it runs and what happens to the files."""
        return {
            item.name: to_json(getattr(self, item.name)) for item in fields(self) if item.name not in _PLACE
        }


def _check(name: str, value: Any, words: str, holds: Any) -> None:
    if value is None:
        return
    if not math.isfinite(value) or not holds(value):
        raise InputError(f"{name} must be {words}, got {value:g}")


@dataclass(frozen=True)
class Settings:
    """The numbers of a run with every default filled in."""

    distill: float
    hidden: float
    labels: float
    temperature: float
    steps: int
    batch: int
    lr: float
    weight_decay: float
    warmup_steps: int
    mask: float
    crop: float
    eval_every: int
    dropout: bool
    seed: int


def settle(
    request: FinetuneRequest, *, factors: bool, teacher: bool, examples: int, can_mask: bool = True
) -> Settings:
    """Fills in the defaults for `examples` training examples. can_mask: the tokenizer has a mask token.

    With a teacher the student learns from it alone, from texts that are cropped and masked anew each time they are
    seen, and without dropout: it is to be the same function. Without one, from the labels of whole texts. Factors are
    not decayed: decay of U and V is a penalty on the nuclear norm of U·V, and pulls its small singular values to 0.

    Raises:
        InputError: distillation without a teacher, or all three losses at weight 0.
    """
    if not teacher and (request.distill or request.hidden):
        raise InputError(
            "distill and hidden need a dense model to learn from: name it with teacher, or leave them out"
        )
    distill = _first(request.distill, 1.0 if teacher else 0.0)
    hidden = _first(request.hidden, 1.0 if teacher else 0.0)
    labels = _first(request.labels, 0.0 if distill or hidden else 1.0)
    if distill + hidden + labels == 0:
        raise InputError("distill, hidden and labels are all 0: nothing would be learned")
    alone = labels == 0
    per_epoch = math.ceil(examples / request.batch)
    steps = request.steps or max(1, round(_first(request.epochs, 5.0 if factors else 3.0) * per_epoch))
    return Settings(
        distill=distill,
        hidden=hidden,
        labels=labels,
        temperature=request.temperature,
        steps=steps,
        batch=request.batch,
        lr=_first(request.lr, 2e-4 if factors else 5e-5),
        weight_decay=0.0 if factors else 0.01,
        warmup_steps=math.ceil(steps / 16),
        mask=_first(request.mask, 0.15 if alone and can_mask else 0.0),
        crop=_first(request.crop, 0.5 if alone else 1.0),
        eval_every=request.eval_every or math.ceil(steps / 4),
        dropout=not alone,
        seed=request.seed,
    )


def _first(given: float | None, default: float) -> float:
    return default if given is None else given


@dataclass(frozen=True)
class EvaluationPoint:
    """A score on the validation split, after `step` steps."""

    step: int
    metric: Metric


@dataclass(frozen=True)
class LossPoint:
    """The mean training loss of the steps since the point before."""

    step: int
    loss: float


@dataclass(frozen=True)
class FinetuneReport:
    """What a training run did. `created` is UTC, ISO 8601.

    mode: dense or factors. dense: the dense model's score; None where there is none (a dense training, or a compressed
    folder without its teacher). before, after: this model's. seconds: of this process, scores included; resumed_from is
    the step it began at. curve: from before the first step to after the last.
    """

    created: str
    machine: Machine
    request: FinetuneRequest
    settings: Settings
    model: ModelInfo
    mode: str
    plan: RankPlan | None
    trained_parameters: int
    train_examples: int
    dense: Metric | None
    before: Metric
    after: Metric
    curve: tuple[EvaluationPoint, ...]
    losses: tuple[LossPoint, ...]
    resumed_from: int
    seconds: float

    @property
    def recovered(self) -> float | None:
        """(after - before) / (dense - before); None where no dense score is known or the cut cost nothing."""
        if self.dense is None or self.dense.value <= self.before.value:
            return None
        return (self.after.value - self.before.value) / (self.dense.value - self.before.value)
