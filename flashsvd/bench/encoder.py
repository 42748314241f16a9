"""`bench encoder`: a whole encoder dense and compressed, beside the baselines that a user would try first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import torch

from flashsvd.bench.contest import Terms, run_contest
from flashsvd.bench.encoder_contestants import CONTESTANTS, Setting
from flashsvd.bench.peaks import peak_bytes
from flashsvd.bench.reference import EncoderJudge
from flashsvd.bench.request import ModelRequest, in_words, load_for, make_factors
from flashsvd.bench.rows import Baselines, Row
from flashsvd.bench.unmasked import unmasked
from flashsvd.data import timing_ids
from flashsvd.devices import available_bytes
from flashsvd.errors import OutOfMemoryError
from flashsvd.measure.ceilings import Ceilings
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress
from flashsvd.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASELINES = Baselines(latency="dense-compile", peak="dense")
_BUDGET_SECONDS = {"cpu": 30.0, "cuda": 60.0}


@dataclass(frozen=True)
class EncoderRequest(ModelRequest):
    """One point; `seq` tokens in each sequence. budget: 60 seconds on a GPU and 30 elsewhere if None."""

    engines: tuple[str, ...] = tuple(CONTESTANTS)
    seq: int = 256

    bench: ClassVar[str] = "encoder"
    baselines: ClassVar[Baselines] = BASELINES
    known: ClassVar[tuple[str, ...]] = tuple(CONTESTANTS)
    sizes: ClassVar[tuple[str, ...]] = ("batch", "seq")
    swept: ClassVar[tuple[str, ...]] = ("seq", "batch")

    @property
    def positions(self) -> int:
        return self.seq


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
    loaded, plan = load_for(request, session)
    factors = make_factors(request, session, loaded, plan, progress)
    encoder = replace(loaded, model=cast("PreTrainedModel", loaded.model.base_model))
    ids = timing_ids(loaded, request.batch, request.seq, request.seed)
    _check_fits(request, encoder, ids)
    setting = Setting(encoder, factors, plan, request.method, ids, request.compile_backend)
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
    return in_words(loaded, plan), rows


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
