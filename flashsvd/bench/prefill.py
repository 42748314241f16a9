"""`bench prefill`: reading prompts into a cache, dense and compressed, beside the baselines that a user would try."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from flashsvd.bench.contest import Terms
from flashsvd.bench.decode_contest import run_decoders
from flashsvd.bench.decoder_setting import Setting
from flashsvd.bench.prefill_contestants import CONTESTANTS
from flashsvd.bench.request import ModelRequest, in_words, load_for, make_factors
from flashsvd.bench.rows import Baselines, Row
from flashsvd.bench.unmasked import unmasked
from flashsvd.data import timing_ids
from flashsvd.engines.decoder import prefill_words
from flashsvd.errors import InputError
from flashsvd.measure.ceilings import Ceilings
from flashsvd.models.causal import check_causal
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress
from flashsvd.session import Session

BASELINES = Baselines(latency="dense", peak="dense")
_BUDGET_SECONDS = 15.0


@dataclass(frozen=True)
class PrefillRequest(ModelRequest):
    """One point: prompts of `seq` tokens each. budget: 15 seconds if None."""

    batch: int = 1
    engines: tuple[str, ...] = tuple(CONTESTANTS)
    seq: int = 512

    bench: ClassVar[str] = "prefill"
    baselines: ClassVar[Baselines] = BASELINES
    known: ClassVar[tuple[str, ...]] = tuple(CONTESTANTS)
    sizes: ClassVar[tuple[str, ...]] = ("batch", "seq")
    swept: ClassVar[tuple[str, ...]] = ("seq", "batch")

    @property
    def positions(self) -> int:
        # One token more: a step that reads the cache is judged, too.
        return self.seq + 1

    def check_model(self, loaded: LoadedModel) -> None:
        check_causal(loaded)
        limit = loaded.shape.max_positions - 1
        if self.seq > limit:
            raise InputError(
                f"seq must be at most {limit} (the positions of {loaded.name} less one), got {self.seq}"
            )


def bench_prefill(
    request: PrefillRequest,
    ceilings: Ceilings,
    session: Session,
    progress: Progress,
    *,
    keep_compiled: bool = False,
) -> tuple[str, tuple[Row, ...]]:
    """Measures one point; returns the plan in words and a row for every engine asked for.

    Latency is that of filling a cache with prompts [B, S], no padding, and of the logits that follow. Peak memory is
    that of activations: of a forward that keeps no keys and values, or of one whose cache was there before. A preset
    gets as many positions as the prompts need. keep_compiled: use what an earlier call compiled.

    Raises:
        InputError: the model does not decode, or has too few positions.
        PlanError, ModelError, CheckpointError, DeviceError: as in `flashsvd.compare.compare`.
        OutOfMemoryError, torch.OutOfMemoryError: the point does not fit.
    """
    if not keep_compiled:
        torch.compiler.reset()
    loaded, plan = load_for(request, session)
    request.check_model(loaded)
    factors = make_factors(request, session, loaded, plan, progress)
    ids = timing_ids(loaded, request.batch, request.seq, request.seed)
    setting = Setting(
        loaded, factors, plan, request.method, ids, new_tokens=1, compile_backend=request.compile_backend
    )
    budget = request.budget or _BUDGET_SECONDS
    terms = Terms(loaded.device, request.dtype, ceilings, BASELINES, request.repeats, budget)
    with unmasked(loaded.model):
        how, rows = run_decoders(
            setting,
            CONTESTANTS,
            request.engines,
            terms,
            progress,
            judged_tokens=1,
            tokens=request.batch * request.seq,
        )
    heads = ""
    if any(name.startswith("flash") for name in request.engines):
        heads = f"; flash: {prefill_words(setting.flash, request.batch, request.seq)}"
    return in_words(loaded, plan) + how + heads, rows
