"""The model that writes: dense, compressed on the spot, or from a compressed folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flashsvd.bench.random_factors import RANDOM, spectra_of
from flashsvd.engines.build import build
from flashsvd.engines.compressed import is_compressed, open_compressed
from flashsvd.engines.hub import load_compressed
from flashsvd.errors import InputError
from flashsvd.factors import factorise
from flashsvd.generation.request import GenerateRequest
from flashsvd.methods import method_named
from flashsvd.models.causal import check_causal
from flashsvd.models.load import LoadedModel, pick_device, pick_dtype
from flashsvd.models.sources import Source, resolve
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import PlanChoice
from flashsvd.session import Session


@dataclass(frozen=True)
class Subject:
    """A model that was found to write text. `engine` makes what runs, which may take long, and gives its plan, None for
    the dense model."""

    loaded: LoadedModel
    method: str | None
    engine: Callable[[Progress], tuple[Any, RankPlan | None]]


def open_subject(request: GenerateRequest, session: Session) -> Subject:
    """Finds what a request names.

    Raises:
        InputError: it does not write text, or ranks or an engine that it cannot have.
        ModelError, CheckpointError, DeviceError: as in `flashsvd.session.Session.model`.
    """
    source = resolve(request.model)
    if is_compressed(source):
        return _folder(request, source)
    if request.engine == "dense" and request.choice is not None:
        raise InputError("the dense engine has no ranks: leave them out, or use --engine lowrank or flash")
    choice = request.choice or PlanChoice(keep=0.5)
    per_head = request.per_head if choice.plan is None else choice.plan.shape.per_head
    loaded = session.model(request.model, request.dtype, request.device, per_head)
    check_causal(loaded)

    def made(report: Progress) -> tuple[Any, RankPlan | None]:
        if request.engine == "dense":
            return loaded.model, None
        method = request.method
        plan = choice.resolve(loaded.shape if method == RANDOM else method_named(method).shape(loaded.shape))
        spectra = spectra_of(session, loaded, method, request.seed, report, request.calibration)
        factors = factorise(loaded, spectra, plan)
        if request.engine == "lowrank":
            return build(loaded, "lowrank", factors, plan, method=method), plan
        return build(loaded, "flash", factors, plan, method=method, cache=request.cache), plan

    return Subject(loaded, None if request.engine == "dense" else request.method, made)


def _folder(request: GenerateRequest, source: Source) -> Subject:
    """A folder of factors."""
    if request.choice is not None:
        raise InputError(f"{request.model} is already compressed: leave the ranks out")
    if request.engine == "dense":
        raise InputError(
            f"{request.model} is compressed, its dense weights are not there: use --engine lowrank or flash"
        )
    dtype, device = pick_dtype(request.dtype), pick_device(request.device)
    opened = open_compressed(source, dtype, device)
    check_causal(opened)
    saved: Any = opened.model.config.quantization_config

    def made(_: Progress) -> tuple[Any, RankPlan | None]:
        plan = RankPlan.from_json(saved.plan)
        if request.engine == "lowrank":
            return opened.model, plan
        assert source.folder is not None
        model: Any = load_compressed(source.folder, engine="flash", dtype=dtype, cache=request.cache)
        return model.to(device), plan

    return Subject(opened, saved.method, made)
