"""`bench encoder`: a whole encoder dense and compressed, beside the baselines that a user would try first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from flashsvd.bench.contest import Terms, run_contest
from flashsvd.bench.encoder_contestants import CONTESTANTS, Setting
from flashsvd.bench.ops import check_seed, check_sizes
from flashsvd.bench.peaks import peak_bytes
from flashsvd.bench.reference import EncoderJudge
from flashsvd.bench.rows import Baselines, Row, command_of
from flashsvd.data import check_input_size, timing_ids
from flashsvd.errors import InputError, OutOfMemoryError
from flashsvd.factors import factorise
from flashsvd.measure.ceilings import Ceilings
from flashsvd.measure.machine import available_bytes
from flashsvd.methods import method_named
from flashsvd.models.load import LoadedModel, pick_dtype
from flashsvd.ranks import RankPlan
from flashsvd.results import PlanChoice
from flashsvd.session import Session
from flashsvd.spectra import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASELINES = Baselines(latency="dense-compile", peak="dense")
_BUDGET_SECONDS = {"cpu": 30.0, "cuda": 60.0}


@dataclass(frozen=True)
class EncoderRequest:
    """One point. `plan_option` is how the command line names `choice`; compile_backend is torch.compile's."""

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
    seed: int = 0
    compile_backend: str = "inductor"

    bench = "encoder"
    baselines = BASELINES

    def check(self) -> None:
        """Raises InputError for what no model could run."""
        pick_dtype(self.dtype)
        method_named(self.method)
        unknown = [name for name in self.engines if name not in CONTESTANTS]
        if unknown or not self.engines:
            got = repr(unknown[0]) if unknown else "none"
            raise InputError(f"engines must be some of {', '.join(CONTESTANTS)}, got {got}")
        check_sizes(batch=self.batch, seq=self.seq, repeats=self.repeats)
        check_seed(self.seed)

    def config(self) -> dict[str, Any]:
        """The setting as plain values."""
        found = {name: getattr(self, name) for name in _CONFIG}
        option, value = self.plan_option
        return found | {option: float(value) if option == "keep" else value, "engines": list(self.engines)}

    def command(self) -> str:
        """The command that measures this point again."""
        options = {
            self.plan_option[0]: self.plan_option[1],
            "whole": not self.per_head,
            "engines": None if self.engines == tuple(CONTESTANTS) else ",".join(self.engines),
            "compile-backend": None if self.compile_backend == "inductor" else self.compile_backend,
        }
        plain = ("method", "batch", "seq", "dtype", "device", "repeats", "seed")
        options |= {name: getattr(self, name) for name in plain}
        return command_of(self.bench, (self.model,), options)


_CONFIG = (
    "model",
    "method",
    "per_head",
    "batch",
    "seq",
    "dtype",
    "device",
    "repeats",
    "seed",
    "compile_backend",
)


def check_fits_model(request: EncoderRequest, session: Session) -> None:
    """Loads the model and raises InputError or PlanError where the input or the plan does not fit it."""
    loaded = _load(request, session)
    check_input_size(loaded, request.batch, request.seq)
    request.choice.resolve(loaded.shape)


def bench_encoder(
    request: EncoderRequest, ceilings: Ceilings, session: Session, progress: Progress
) -> tuple[str, tuple[Row, ...]]:
    """Measures one point; returns the plan in words and a row for every engine asked for.

    The model's head is left off: what is measured and judged is the encoder, whose last hidden states [B, S, d] are
    a sample large enough to judge by. No padding, so that the dense rows keep their fastest path; padded inputs are
    what `compare` checks.

    Raises:
        InputError, PlanError, ModelError, CheckpointError, DeviceError: as in `flashsvd.compare.compare`.
        OutOfMemoryError, torch.OutOfMemoryError: the point does not fit.
    """
    # Each point compiles anew: beyond a few shapes torch would quietly stop specialising on them.
    torch.compiler.reset()
    loaded = _load(request, session)
    plan = request.choice.resolve(loaded.shape)
    progress("Decomposing the weights", 0.0)
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
        _BUDGET_SECONDS[loaded.device.type],
    )
    contestants = {name: CONTESTANTS[name](setting) for name in dict.fromkeys(request.engines)}
    rows = run_contest(contestants, EncoderJudge(setting), terms, progress)
    return _about(loaded, plan), rows


def _load(request: EncoderRequest, session: Session) -> LoadedModel:
    given = request.choice.plan
    per_head = request.per_head if given is None else given.shape.per_head
    return session.model(request.model, request.dtype, request.device, per_head)


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
