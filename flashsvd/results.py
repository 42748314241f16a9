"""What a measurement returns: plain frozen data with units in the names. No torch, no pictures."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flashsvd.errors import InputError
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan

TIMELINE_COLUMNS = ("event", "op", "module", "layer", "category", "bytes", "live_bytes", "time_ms")
"""One row per birth (bytes > 0) or death (bytes < 0) of memory.

event: op index; op: what ran; module: path in the model; layer: counted from 0, -1 outside the blocks;
category: weight, kv cache (where one was asked for), activation (outlives the module that made it) or workspace;
live_bytes: total after this row, weights included; time_ms: since the forward began, with the overhead of recording.
"""


@dataclass(frozen=True)
class Machine:
    """Where a number was measured."""

    device: str
    accelerator: str | None
    accelerator_memory_bytes: int | None
    cpu: str
    cores: int
    memory_bytes: int
    platform: str
    python: str
    torch: str
    triton: str | None
    transformers: str
    driver: str | None

    @property
    def label(self) -> str:
        """Short name for badges: the GPU, or the number of CPU cores."""
        return self.accelerator.removeprefix("NVIDIA ") if self.accelerator else f"CPU, {self.cores} cores"


@dataclass(frozen=True)
class ModelInfo:
    """What was run. `parameters` counts the whole dense model."""

    name: str
    kind: str
    trained: bool
    parameters: int
    shape: ModelShape


@dataclass(frozen=True)
class Quantiles:
    """Latency over repeats, milliseconds."""

    p20: float
    p50: float
    p80: float


@dataclass(frozen=True)
class Metric:
    """A score with its 95 % interval. `floor` is what always naming the commonest class scores on the same samples,
    where that means something. n: how many pieces, or tokens of a language model, were scored.
    """

    name: str
    value: float
    n: int
    low: float
    high: float
    floor: float | None
    seed: int
    counted: str = "pieces"

    @property
    def lower_is_better(self) -> bool:
        """True of perplexity and of divergence, False of shares of right answers and of correlations."""
        return self.unit != "%"

    @property
    def unit(self) -> str:
        """What the value is in: "nats" of KL, "bits" of a byte, "" of perplexity, and "%" of what is shown in percent.

        >>> Metric("wikitext/word_perplexity", 9.0, 62, 8.0, 10.0, None, 0).unit
        ''
        """
        if "perplexity" in self.name:
            return ""
        return "bits" if "bits_per_byte" in self.name else "nats" if self.name == "kl" else "%"


@dataclass(frozen=True)
class GateReport:
    """The correctness check of a run against the low-rank engine in higher precision, on the same input.

    error: relative norm against the reference; passes up to `limit`, which follows `baseline_error`, what the
    low-rank engine itself loses to rounding in this dtype (`flashsvd.measure.fidelity.judge`).
    """

    passed: bool
    error: float
    baseline_error: float
    limit: float
    reference: str


@dataclass(frozen=True)
class EngineRun:
    """One engine's numbers. `error_vs_lowrank` is the relative norm of the difference of logits and hidden states."""

    engine: str
    backend: str
    latency_ms: Quantiles
    repeats: int
    peak_activation_bytes: int
    weight_bytes: int
    metric: Metric | None
    error_vs_lowrank: float | None
    gate: GateReport | None
    timeline: pd.DataFrame = field(repr=False, compare=False, metadata={"json": False})


@dataclass(frozen=True)
class PlanChoice:
    """Which ranks to run: exactly one of keep, ranks (head, feed-forward, output), rules as text, or a whole plan."""

    keep: float | None = None
    ranks: tuple[int, int, int] | None = None
    text: str | None = None
    plan: RankPlan | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.keep, self.ranks, self.text, self.plan) if value is not None]
        if len(given) != 1:
            raise InputError(f"give exactly one of keep, ranks or a plan, got {len(given)}")

    def resolve(self, shape: ModelShape) -> RankPlan:
        """The plan for a model. Raises PlanError where it does not fit."""
        from flashsvd.allocate import by_role, uniform

        if self.plan is not None:
            self.plan.check_fits(shape)
            return self.plan
        if self.text is not None:
            return RankPlan.from_text(shape, self.text)
        if self.ranks is not None:
            return by_role(shape, *self.ranks)
        assert self.keep is not None
        return uniform(shape, self.keep)


@dataclass(frozen=True)
class Calibration:
    """The text that data-aware methods look at: `text` names a task or a file (`flashsvd.tasks`), and is the model's
    own calibration set by default; at most `samples` pieces of it, drawn with `seed`.
    """

    text: str | None = None
    samples: int = 256
    seed: int = 0


OWN_TEXT = Calibration()


@dataclass(frozen=True)
class CompareRequest:
    """What a comparison is asked to run. `samples` bounds the held-out pieces that are scored, or the windows of
    held-out text (512 and 64 if None); a whole plan decides `per_head` itself.
    """

    model: str
    choice: PlanChoice
    method: str = "svd"
    per_head: bool = True
    batch: int = 8
    seq: int = 256
    dtype: str = "fp32"
    device: str = "auto"
    engines: tuple[str, ...] = ("dense", "lowrank", "flash")
    samples: int | None = None
    repeats: int = 10
    seed: int = 0
    calibration: Calibration = OWN_TEXT


@dataclass(frozen=True)
class CurveRequest:
    """What a curve of the score against keep is asked to run. samples: held-out pieces, or windows of held-out text,
    that are scored at most, 512 and 64 if None. allocator: of `flashsvd.search.allocators`; it looks at the calibration
    text where it needs some. task: what is scored, by name (`flashsvd.tasks`); the model's own held-out set if None.
    """

    model: str
    keeps: tuple[float, ...]
    method: str = "svd"
    per_head: bool = True
    dtype: str = "fp32"
    device: str = "auto"
    samples: int | None = None
    seed: int = 0
    calibration: Calibration = OWN_TEXT
    allocator: str = "uniform"
    task: str | None = None


@dataclass(frozen=True)
class SpectraRequest:
    """Singular values of a model, for the pictures and presets that need no forward pass."""

    model: str
    method: str = "svd"
    per_head: bool = True
    device: str = "auto"
    calibration: Calibration = OWN_TEXT


@dataclass(frozen=True)
class Comparison:
    """Several engines on one input. `created` is UTC, ISO 8601."""

    created: str
    machine: Machine
    model: ModelInfo
    method: str
    plan: RankPlan
    batch: int
    seq: int
    dtype: str
    seed: int
    decompositions: int
    runs: tuple[EngineRun, ...]

    @property
    def keep(self) -> float:
        return self.plan.keep

    @property
    def kept_model_parameters(self) -> int:
        """Parameters of the whole model under the plan."""
        return self.model.parameters - self.plan.shape.dense_parameters + self.plan.kept_parameters

    def run(self, engine: str) -> EngineRun | None:
        """The run of one engine, or None where it was not asked for."""
        return next((run for run in self.runs if run.engine == engine), None)


@dataclass(frozen=True)
class CurvePoint:
    """One point: what was asked and what the plan really keeps, of the factored linears.

    kl: mean KL(dense ‖ compressed) in nats over the same samples; agreement: share of equal most likely classes, or
    next tokens.
    """

    asked_keep: float
    keep: float
    kept_parameters: int
    plan: str
    metric: Metric
    kl: Metric | None = None
    agreement: Metric | None = None


@dataclass(frozen=True)
class Curve:
    """Accuracy, or the perplexity of a language model, against keep for one method. `decompositions` counts the SVDs
    that were computed for it; `calibration` is what a data-aware method or allocator looked at, None for others; `task`
    what was scored, None for the model's own held-out set.
    """

    created: str
    machine: Machine
    model: ModelInfo
    method: str
    dtype: str
    seed: int
    decompositions: int
    seconds: float
    dense: Metric
    points: tuple[CurvePoint, ...]
    calibration: Calibration | None = None
    allocator: str = "uniform"
    task: str | None = None


@dataclass(frozen=True)
class SpectraSummary:
    """Singular values by (layer, slot), [units, rank] each, largest first."""

    model: ModelInfo
    method: str
    sigmas: dict[tuple[int, str], NDArray[np.float64]] = field(repr=False, compare=False)


def to_json(value: Any) -> Any:
    """Any of these as plain objects. Timelines and singular values are tables, and left out."""
    if isinstance(value, RankPlan | ModelShape):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        out = {
            item.name: to_json(getattr(value, item.name))
            for item in dataclasses.fields(value)
            if item.metadata.get("json", True) and item.name != "sigmas"
        }
        if isinstance(value, Comparison):
            out["keep"] = value.keep
            out["kept_model_parameters"] = value.kept_model_parameters
        return out
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[Any], data: Any, **extra: Any) -> Any:
    """The inverse of `to_json`; `extra` gives fields that JSON does not hold.

    Raises:
        InputError: a field is missing.
    """
    if kind in (RankPlan, ModelShape):
        return kind.from_json(data)
    if not dataclasses.is_dataclass(kind):
        return _plain(kind, data)
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = dict(extra)
    for item in dataclasses.fields(kind):
        if item.name in values or not item.metadata.get("json", True):
            continue
        if isinstance(data, Mapping) and item.name not in data and _has_default(item):
            continue
        if not isinstance(data, Mapping) or item.name not in data:
            raise InputError(
                f"{kind.__name__} in this file has no field {item.name!r}: it is from another version"
            )
        values[item.name] = from_json(hints[item.name], data[item.name])
    return kind(**values)


def _has_default(item: dataclasses.Field[Any]) -> bool:
    """A field that a version after the file's added."""
    return item.default is not dataclasses.MISSING


def _plain(kind: Any, data: Any) -> Any:
    arguments = typing.get_args(kind)
    if data is not None and type(None) in arguments:
        return from_json(next(argument for argument in arguments if argument is not type(None)), data)
    if typing.get_origin(kind) is tuple and isinstance(data, list):
        return tuple(from_json(arguments[0], item) for item in data)
    return data
