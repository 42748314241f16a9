"""`bench encoder`: a whole encoder dense and compressed, beside the baselines that a user would try first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from flashsvd.bench.contest import Terms, run_contest
from flashsvd.bench.encoder_contestants import CONTESTANTS, Setting
from flashsvd.bench.ops import check_seed, check_sizes
from flashsvd.bench.peaks import peak_bytes
from flashsvd.bench.random_factors import RANDOM, random_spectra
from flashsvd.bench.reference import EncoderJudge
from flashsvd.bench.rows import Baselines, Row, command_of
from flashsvd.bench.unmasked import unmasked
from flashsvd.data import check_input_size, timing_ids
from flashsvd.devices import available_bytes
from flashsvd.errors import InputError, OutOfMemoryError
from flashsvd.factors import factorise
from flashsvd.measure.ceilings import Ceilings
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel, pick_dtype
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import PlanChoice
from flashsvd.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAN_OPTIONS = ("keep", "ranks", "plan", "rules")
"""How the command line may name a plan."""

BASELINES = Baselines(latency="dense-compile", peak="dense")
_BUDGET_SECONDS = {"cpu": 30.0, "cuda": 60.0}

# torch runs a function uncompiled, without a word, once it holds eight versions of it: dense and seven plans.
_MOST_COMPILED = 6


@dataclass(frozen=True)
class EncoderRequest:
    """One point.

    plan_option: how the command line names `choice`. method: as in `flashsvd.methods`, or "random" for factors that
    are drawn. budget: seconds of timing after which fewer repeats will do; 60 on a GPU and 30 elsewhere if None.
    compile_backend: torch.compile's.
    """

    model: str
    choice: PlanChoice
    plan_option: tuple[str, str]
    method: str = "svd"
    per_head: bool = True
    batch: int = 8
    seq: int = 256
    dtype: str = "fp32"
    device: str = "auto"
    engines: tuple[str, ...] = tuple(CONTESTANTS)
    repeats: int = 20
    budget: float | None = None
    seed: int = 0
    compile_backend: str = "inductor"

    bench = "encoder"
    baselines = BASELINES

    def check(self) -> None:
        """Raises InputError for what no model could run."""
        pick_dtype(self.dtype)
        if self.method != RANDOM:
            method_named(self.method)
        unknown = [name for name in self.engines if name not in CONTESTANTS]
        if unknown or not self.engines:
            got = repr(unknown[0]) if unknown else "none"
            raise InputError(f"engines must be some of {', '.join(CONTESTANTS)}, got {got}")
        check_sizes(batch=self.batch, seq=self.seq, repeats=self.repeats)
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise InputError(f"budget must be a number of seconds above 0, got {self.budget}")
        check_seed(self.seed)

    def config(self) -> dict[str, Any]:
        """The setting as plain values."""
        found = {name: getattr(self, name) for name in _CONFIG}
        option, value = self.plan_option
        return found | {option: float(value) if option == "keep" else value, "engines": list(self.engines)}

    def command(self) -> str:
        """The command that measures this point again."""
        return encoder_command(self.config())

    def same_input(self, other: EncoderRequest) -> bool:
        """Whether the dense model sees the same tensors, so that what was compiled for one serves the other."""
        names = ("model", "batch", "seq", "dtype", "device", "compile_backend")
        return all(getattr(self, name) == getattr(other, name) for name in names)


_CONFIG = (
    "model",
    "method",
    "per_head",
    "batch",
    "seq",
    "dtype",
    "device",
    "repeats",
    "budget",
    "seed",
    "compile_backend",
)


def encoder_command(config: Mapping[str, Any]) -> str:
    """The command line of a `EncoderRequest.config`. Sweepable values may be lists in the command line's own form."""
    engines, backend = tuple(config["engines"]), config["compile_backend"]
    plan = next((option for option in PLAN_OPTIONS if option in config), "keep")
    options = {
        plan: config.get(plan),
        "whole": not config["per_head"],
        "engines": None if engines == tuple(CONTESTANTS) else ",".join(engines),
        "compile-backend": None if backend == "inductor" else backend,
    }
    plain = ("method", "batch", "seq", "dtype", "device", "repeats", "budget", "seed")
    return command_of("encoder", (config["model"],), options | {name: config[name] for name in plain})


def check_fits_model(request: EncoderRequest, session: Session) -> None:
    """Loads the model and raises InputError or PlanError where the input or the plan does not fit it."""
    loaded, _ = _load(request, session)
    check_input_size(loaded, request.batch, request.seq)


class EncoderBench:
    """Measures one request after another as `bench_encoder` does; requests with the same input next to each other
    share the compiled dense model, which does not depend on the plan."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._compiled: list[EncoderRequest] = []

    def __call__(
        self, request: EncoderRequest, ceilings: Ceilings, progress: Progress
    ) -> tuple[str, tuple[Row, ...]]:
        kept = self._compiled
        if kept and (len(kept) == _MOST_COMPILED or not kept[0].same_input(request)):
            kept.clear()
        keep = bool(kept)
        kept.append(request)
        return bench_encoder(request, ceilings, self._session, progress, keep_compiled=keep)


def bench_encoder(
    request: EncoderRequest,
    ceilings: Ceilings,
    session: Session,
    progress: Progress,
    *,
    keep_compiled: bool = False,
) -> tuple[str, tuple[Row, ...]]:
    """Measures one point; returns the plan in words and a row for every engine asked for.

    The model's head is left off: what is measured and judged is the encoder, whose last hidden states [B, S, d] are
    a sample large enough to judge by. No padding, so that the dense rows keep their fastest path; padded inputs are
    what `compare` checks. A preset gets as many positions as the sequence needs. keep_compiled: use what an earlier
    call compiled.

    Raises:
        InputError, PlanError, ModelError, CheckpointError, DeviceError: as in `flashsvd.compare.compare`.
        OutOfMemoryError, torch.OutOfMemoryError: the point does not fit.
    """
    if not keep_compiled:
        torch.compiler.reset()
    loaded, plan = _load(request, session)
    progress("Making the factors", 0.0)
    if request.method == RANDOM:
        spectra = random_spectra(loaded, request.seed)
    else:
        spectra, _ = session.spectra(loaded, request.method, progress)
    encoder = replace(loaded, model=cast("PreTrainedModel", loaded.model.base_model))
    ids = timing_ids(loaded, request.batch, request.seq, request.seed)
    _check_fits(request, encoder, ids)
    setting = Setting(
        encoder, factorise(encoder, spectra, plan), plan, request.method, ids, request.compile_backend
    )
    terms = Terms(
        loaded.device,
        request.dtype,
        ceilings,
        BASELINES,
        request.repeats,
        request.budget or _BUDGET_SECONDS[loaded.device.type],
    )
    contestants = {name: CONTESTANTS[name](setting) for name in dict.fromkeys(request.engines)}
    with unmasked(encoder.model):
        rows = run_contest(contestants, EncoderJudge(setting), terms, progress)
    return _about(loaded, plan), rows


def _load(request: EncoderRequest, session: Session) -> tuple[LoadedModel, RankPlan]:
    """The model, with positions enough where it is a preset, and the plan resolved for it."""
    given = request.choice.plan
    per_head = request.per_head if given is None else given.shape.per_head
    loaded = session.model(request.model, request.dtype, request.device, per_head)
    plan = request.choice.resolve(loaded.shape)
    longer = session.longer(loaded, request.seq)
    return longer, replace(plan, shape=longer.shape.with_per_head(plan.shape.per_head))


def _about(loaded: LoadedModel, plan: RankPlan) -> str:
    return f"{loaded.name}, {len(loaded.shape.layers)} layers, {plan.summary()}"


def _check_fits(request: EncoderRequest, encoder: LoadedModel, ids: torch.Tensor) -> None:
    """A CPU grants memory it does not have and then kills the process, so a batch of one is multiplied first."""
    if encoder.device.type == "cuda":
        return

    @torch.inference_mode()
    def single() -> object:
        return encoder.model(ids[:1])

    needed, free = (
        request.batch * peak_bytes(encoder.model, single, encoder.device),
        available_bytes(encoder.device),
    )
    if needed > free:
        what = f"batch {request.batch} x {request.seq} tokens of {request.model}"
        raise OutOfMemoryError(what, needed, free)
