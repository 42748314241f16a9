"""`bench decode`: one token after another, dense and compressed, beside the baselines that a user would try first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from flashsvd.bench.contest import Terms
from flashsvd.bench.decode_contest import run_decoders
from flashsvd.bench.decode_contestants import CONTESTANTS
from flashsvd.bench.decoder_setting import Setting
from flashsvd.bench.request import ModelRequest, in_words, load_for, make_factors
from flashsvd.bench.rows import Baselines, Row
from flashsvd.data import timing_ids
from flashsvd.errors import InputError
from flashsvd.measure.ceilings import Ceilings
from flashsvd.models.causal import check_causal
from flashsvd.models.load import LoadedModel
from flashsvd.progress import Progress
from flashsvd.session import Session

BASELINES = Baselines(latency="dense-static-compile", peak="dense", runtime="dense-graph")
_BUDGET_SECONDS = 15.0
_JUDGED_TOKENS = 8


@dataclass(frozen=True)
class DecodeRequest(ModelRequest):
    """One point: `new_tokens` timed as one block, after `context` tokens. budget: 15 seconds if None."""

    batch: int = 1
    engines: tuple[str, ...] = tuple(CONTESTANTS)
    repeats: int = 10
    context: int = 512
    new_tokens: int = 32

    bench: ClassVar[str] = "decode"
    baselines: ClassVar[Baselines] = BASELINES
    known: ClassVar[tuple[str, ...]] = tuple(CONTESTANTS)
    sizes: ClassVar[tuple[str, ...]] = ("batch", "context", "new_tokens")
    swept: ClassVar[tuple[str, ...]] = ("context", "batch")

    @property
    def positions(self) -> int:
        return self.context + self.new_tokens

    def check_model(self, loaded: LoadedModel) -> None:
        check_causal(loaded)
        limit = loaded.shape.max_positions
        if self.positions > limit:
            raise InputError(
                f"context and new tokens must be at most {limit} together (the positions of {loaded.name}), "
                f"got {self.context} and {self.new_tokens}"
            )


def bench_decode(
    request: DecodeRequest,
    ceilings: Ceilings,
    session: Session,
    progress: Progress,
    *,
    keep_compiled: bool = False,
) -> tuple[str, tuple[Row, ...]]:
    """Measures one point; returns the plan in words and a row for every engine asked for.

    Every engine reads the same context [B, T], no padding, and goes on greedily for a block of tokens, again and again
    from there. Rows whose caches do not fit at the same time are timed in several groups, which the words tell. A
    preset gets as many positions as that needs. keep_compiled: use what an earlier call compiled.

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
    ids = timing_ids(loaded, request.batch, request.context, request.seed)
    setting = Setting(loaded, factors, plan, request.method, ids, request.new_tokens, request.compile_backend)
    terms = Terms(
        loaded.device,
        request.dtype,
        ceilings,
        BASELINES,
        request.repeats,
        request.budget or _BUDGET_SECONDS,
        steps=request.new_tokens,
        warm=1,
    )
    how, rows = run_decoders(
        setting,
        CONTESTANTS,
        request.engines,
        terms,
        progress,
        judged_tokens=min(_JUDGED_TOKENS, request.new_tokens),
        tokens=request.batch,
    )
    return in_words(loaded, plan) + how, rows
