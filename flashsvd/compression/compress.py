"""A dense model, a method and a plan -> a compressed checkpoint folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flashsvd.calibration import calibration_batches
from flashsvd.compare import model_info
from flashsvd.compression.large import compress_large
from flashsvd.compression.refit import refit
from flashsvd.engines.build import build, check_engine, weight_bytes
from flashsvd.engines.stream import check_streams
from flashsvd.errors import InputError
from flashsvd.factors import Factors, factorise
from flashsvd.folders import check_free, new_folder
from flashsvd.measure.layer_error import layer_errors
from flashsvd.measure.machine import describe_machine
from flashsvd.methods import method_named
from flashsvd.methods.base import Method
from flashsvd.models.companions import save_companions
from flashsvd.models.load import LoadedModel, pick_device, quiet
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import OWN_TEXT, Calibration, Machine, ModelInfo, PlanChoice
from flashsvd.session import Session


@dataclass(frozen=True)
class CompressRequest:
    """What to compress and how; `out` is the folder to write.

    engine: what the folder opens with; flash by default, lowrank for families that do not stream. refit: SVD-LLM's
    sequential update of U. low_memory: one layer at a time, straight into the folder, for models that do not fit.
    force: replace a model that is there.
    """

    model: str
    out: Path
    choice: PlanChoice
    method: str = "svd"
    per_head: bool = True
    dtype: str = "fp32"
    device: str = "auto"
    engine: str | None = None
    calibration: Calibration = OWN_TEXT
    refit: bool = False
    low_memory: bool = False
    force: bool = False


@dataclass(frozen=True)
class Compressed:
    """What was written. Bytes are those of all weights. layer_errors: the relative output error in the method's norm by
    (layer counted from 1, slot), the largest first; no forward pass, from the singular values alone. Empty with
    low_memory, which does not keep them.
    """

    created: str
    machine: Machine
    model: ModelInfo
    method: str
    plan: RankPlan
    folder: str
    dense_bytes: int
    compressed_bytes: int
    layer_errors: tuple[tuple[str, float], ...]
    calibration: Calibration | None
    seconds: float


def compress(
    request: CompressRequest, session: Session | None = None, progress: Progress | None = None
) -> Compressed:
    """Writes a folder that `load_compressed`, and after `register()` transformers' Auto classes, open.

    Raises:
        InputError, PlanError, ModelError, CheckpointError, DeviceError: see where each is made; nothing is left
            half written.
    """
    report = progress or (lambda stage, share: None)
    session = session or Session()
    check_engine(request.engine or "flash")
    check_free(request.out, force=request.force)
    method = method_named(request.method)
    started = time.perf_counter()
    report("Loading the model", 0.0)
    given = request.choice.plan
    per_head = request.per_head if given is None else given.shape.per_head
    place = "cpu" if request.low_memory else request.device
    loaded = session.model(request.model, request.dtype, place, per_head)
    if request.engine == "flash":
        check_streams(loaded.family)
    engine = request.engine or ("flash" if loaded.family.stream else "lowrank")
    plan = request.choice.resolve(method.shape(loaded.shape))
    if request.low_memory:
        errors = _layer_by_layer(request, engine, loaded, method, plan, report)
    else:
        errors = _in_memory(request, engine, session, loaded, method, plan, report)
    report("Done", 1.0)
    return Compressed(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(loaded.device),
        model=model_info(loaded),
        method=method.spec,
        plan=plan,
        folder=str(request.out),
        dense_bytes=weight_bytes(loaded.model),
        compressed_bytes=sum(file.stat().st_size for file in request.out.glob("*.safetensors")),
        layer_errors=tuple(
            sorted(
                ((f"L{layer + 1}.{name}", error) for (layer, name), error in errors.items()),
                key=lambda row: -row[1],
            )
        ),
        calibration=request.calibration if method.needs else None,
        seconds=time.perf_counter() - started,
    )


def _in_memory(
    request: CompressRequest,
    engine: str,
    session: Session,
    loaded: LoadedModel,
    method: Method,
    plan: RankPlan,
    report: Progress,
) -> dict[tuple[int, str], float]:
    spectra, _ = session.spectra(
        loaded, method.spec, lambda stage, share: report(stage, 0.05 + 0.7 * share), request.calibration
    )
    factors: Factors = factorise(loaded, spectra, plan)
    if request.refit:
        batches = calibration_batches(loaded, request.calibration)
        factors = refit(
            loaded,
            factors,
            plan,
            batches,
            progress=lambda stage, share: report(f"Refitting: {stage}", 0.75 + 0.2 * share),
        )
    # The factors as they are: what flash makes of them is made anew when the folder is opened.
    model = build(loaded, "lowrank", factors, plan, method=method.spec)
    model.config.quantization_config.engine = engine
    report("Writing", 0.95)
    with new_folder(request.out, force=request.force) as folder:
        with quiet():
            model.save_pretrained(folder)
        save_companions(loaded, folder)
    return layer_errors(spectra.sigmas(), plan)


def _layer_by_layer(
    request: CompressRequest,
    engine: str,
    loaded: LoadedModel,
    method: Method,
    plan: RankPlan,
    report: Progress,
) -> dict[tuple[int, str], float]:
    if request.refit:
        raise InputError("low_memory writes each layer once and cannot refit it: leave one of the two out")
    compress_large(
        loaded,
        plan,
        method,
        calibration_batches(loaded, request.calibration) if method.needs else (),
        request.out,
        device=pick_device(request.device),
        engine=engine,
        force=request.force,
        progress=report,
    )
    return {}
