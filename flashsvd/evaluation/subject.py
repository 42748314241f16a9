"""The model that an evaluation scores: dense, compressed on the spot, or from a compressed folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from flashsvd.engines.build import build
from flashsvd.engines.compressed import is_compressed, open_compressed
from flashsvd.errors import InputError, ModelError
from flashsvd.factors import factorise
from flashsvd.measure.layer_error import layer_errors
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel, pick_device, pick_dtype
from flashsvd.models.sources import Source, resolve
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import ModelInfo
from flashsvd.session import Session
from flashsvd.tasks.base import Examples, Task
from flashsvd.tasks.bundled import has_bundled

if TYPE_CHECKING:
    from flashsvd.evaluation.evaluate import EvaluateRequest

_WORST = 5


@dataclass(frozen=True)
class LayerError:
    """Relative output error of one slot in the method's norm; `place` counts layers from 1."""

    place: str
    error: float


@dataclass(frozen=True)
class Subject:
    """loaded: what tasks are read for. model: what is scored, on examples of a task (both None for the harness). dense:
    what it is compared with, and `against` its name.
    """

    loaded: LoadedModel
    model: Any
    info: ModelInfo
    task: Task | None
    examples: Examples | None
    method: str | None = None
    plan: RankPlan | None = None
    dense: Any = None
    against: str | None = None
    errors: tuple[LayerError, ...] = ()
    decompositions: int = 0
    calibrated: bool = False


Choose = Callable[[LoadedModel], tuple[Task | None, Examples | None]]


def subject_of(request: EvaluateRequest, session: Session, report: Progress, choose: Choose) -> Subject:
    """Loads what a request names and, where it gives ranks, compresses it; see `flashsvd.evaluation.evaluate.evaluate`.

    choose: gives what to score the loaded model on; asked before the work, so that it is not done for nothing.
    """
    report("Loading the model", 0.0)
    source = resolve(request.model)
    if is_compressed(source):
        return _from_folder(request, source, session, choose)
    given = request.choice.plan if request.choice else None
    per_head = request.per_head if given is None else given.shape.per_head
    loaded = session.model(request.model, request.dtype, request.device, per_head)
    if not loaded.trained:
        raise ModelError(f"{loaded.name} has random weights: scores do not apply")
    against, dense = _against(request, session)
    info = _info(loaded, loaded.parameters)
    task, examples = choose(loaded)
    if request.choice is None:
        return Subject(
            loaded, loaded.model, info, task, examples, dense=dense and dense.model, against=against
        )
    method = method_named(request.method)
    spectra, computed = session.spectra(
        loaded,
        method.spec,
        lambda stage, share: report(stage, 0.3 * share),
        request.calibration,
    )
    plan = request.choice.resolve(method.shape(loaded.shape))
    errors = layer_errors(spectra.sigmas(), plan)
    worst = sorted(errors.items(), key=lambda item: -item[1])[:_WORST]
    return Subject(
        loaded,
        build(loaded, "lowrank", factorise(loaded, spectra, plan), plan, method=method.spec),
        info,
        task,
        examples,
        method.spec,
        plan,
        dense.model if dense else loaded.model,
        against or loaded.name,
        tuple(LayerError(f"L{layer + 1}.{name}", error) for (layer, name), error in worst),
        computed,
        bool(method.needs),
    )


def _from_folder(request: EvaluateRequest, source: Source, session: Session, choose: Choose) -> Subject:
    if request.choice is not None:
        raise InputError(f"{request.model} is already compressed: leave the ranks out to score it as it is")
    loaded = open_compressed(source, pick_dtype(request.dtype), pick_device(request.device))
    model: Any = loaded.model
    saved = model.config.quantization_config
    plan = RankPlan.from_json(saved.plan)
    against, dense = _against(request, session)
    if dense is not None:
        plan.check_fits(dense.shape)
        loaded = replace(loaded, tokenizer=loaded.tokenizer or dense.tokenizer)
    if dense is not None and not has_bundled(loaded):
        # A folder written without the sets of its model is scored on those of the dense one.
        loaded = replace(loaded, source=replace(source, folder=dense.source.folder))
    info = _info(loaded, _dense_parameters(model))
    return Subject(
        loaded,
        model,
        info,
        *choose(loaded),
        saved.method,
        plan,
        None if dense is None else dense.model,
        against,
    )


def _against(request: EvaluateRequest, session: Session) -> tuple[str | None, LoadedModel | None]:
    if request.against is None:
        return None, None
    dense = session.model(request.against, request.dtype, request.device, request.per_head)
    if not dense.trained:
        raise ModelError(f"{dense.name} has random weights: there is nothing to compare with")
    return dense.name, dense


def _info(loaded: LoadedModel, parameters: int) -> ModelInfo:
    return ModelInfo(loaded.name, loaded.source.kind, loaded.trained, parameters, loaded.shape)


def _dense_parameters(model: Any) -> int:
    """Parameters of the dense model of a compressed one, whose weights are not there."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):
        return int(type(model)(config).num_parameters())
