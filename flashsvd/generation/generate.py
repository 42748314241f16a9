"""Writes on after prompts, with any engine, through the runtime that decodes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flashsvd.decoding.runtime import Runtime
from flashsvd.generation.prompts import encode, padded, room_for
from flashsvd.generation.request import GenerateRequest
from flashsvd.generation.subject import Subject, open_subject
from flashsvd.generation.writer import AllEnded, OnText, Writer, Written
from flashsvd.measure.latency import quantiles
from flashsvd.measure.machine import describe_machine
from flashsvd.progress import Progress
from flashsvd.ranks import RankPlan
from flashsvd.results import Machine, Quantiles
from flashsvd.session import Session


@dataclass(frozen=True)
class Generation:
    """All that was written, and how. rounds: tokens of every prompt that were waited for. first_seconds: from a model
    in memory to the first: packing weights, warming up, reading the prompts. seconds: to the last. step_ms: of each
    after the first, None where there was none. weight_bytes and cache_bytes: what the runtime holds, for `context`
    tokens. prefill: how prompts were read, in words."""

    created: str
    machine: Machine
    model: str
    plan: str | None
    method: str | None
    engine: str
    cache: str
    dtype: str
    temperature: float
    seed: int
    written: tuple[Written, ...]
    rounds: int
    first_seconds: float
    seconds: float
    step_ms: Quantiles | None
    weight_bytes: int
    cache_bytes: int
    context: int
    prefill: str

    @property
    def cold_rate(self) -> float:
        """Tokens of one sequence a second while there was only the first."""
        return 1 / self.first_seconds

    @property
    def steady_rate(self) -> float | None:
        """Tokens of one sequence a second after the first."""
        if self.rounds < 2 or self.seconds <= self.first_seconds:
            return None
        return (self.rounds - 1) / (self.seconds - self.first_seconds)


def generate(
    request: GenerateRequest,
    session: Session | None = None,
    progress: Progress | None = None,
    on_text: OnText | None = None,
) -> Generation:
    """Writes on after every prompt until each has ended; texts are given piece by piece to `on_text`.

    A KeyboardInterrupt after the first token ends the writing, not the call.

    Raises:
        InputError: the request cannot run, the model does not write text, has no tokenizer, or no room for a prompt.
        ModelError, CheckpointError, PlanError, DeviceError: see where each is made.
        OutOfMemoryError: the cache does not fit; it says how many tokens would.
    """
    request.check()
    report = progress or _silent
    report("Loading the model", 0.0)
    subject = open_subject(request, session or Session())
    prompts = encode(request, subject.loaded)
    room_for(request, subject.loaded, prompts)
    model, plan = subject.engine(report)
    return write_on(request, subject, prompts, model, plan, report, on_text)


def write_on(
    request: GenerateRequest,
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    model: Any,
    plan: RankPlan | None,
    report: Progress,
    on_text: OnText | None = None,
) -> Generation:
    """`generate` with a model that is there already: what `subject.engine` made, and its plan.

    Raises:
        InputError: no room for a prompt, or for the new tokens after it.
        OutOfMemoryError: the cache does not fit.
    """
    loaded = subject.loaded
    new_tokens = room_for(request, loaded, prompts)
    ids, mask = padded(prompts, loaded)
    context = ids.shape[1] + new_tokens
    writer = Writer(
        request, loaded, len(prompts), on_text, lambda share: report("Writing", share), new_tokens
    )
    report("Reading the prompts", 0.0)
    started = time.perf_counter()
    shape = loaded.shape if plan is None else plan.shape
    runtime = Runtime(loaded, model, shape, batch=len(prompts), context=context)
    interrupted = False
    try:
        runtime.generate(
            ids, mask, max_new_tokens=new_tokens, sampling=request.sampling, on_token=writer.take
        )
    except AllEnded:
        pass
    except KeyboardInterrupt:
        if not writer.times:
            raise
        interrupted = True
    writer.finish(interrupted)
    steps = [(after - before) * 1e3 for before, after in zip(writer.times, writer.times[1:], strict=False)]
    return Generation(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(loaded.device),
        model=loaded.name,
        plan=None if plan is None else plan.summary(),
        method=subject.method,
        engine=request.engine,
        cache=request.cache,
        dtype=request.dtype,
        temperature=request.temperature,
        seed=request.seed,
        written=writer.written(prompts),
        rounds=len(writer.times),
        first_seconds=writer.times[0] - started,
        seconds=writer.times[-1] - started,
        step_ms=quantiles(steps) if steps else None,
        weight_bytes=runtime.weight_bytes,
        cache_bytes=runtime.kv_bytes,
        context=context,
        prefill=runtime.plan,
    )


def _silent(stage: str, share: float) -> None:
    """No progress wanted."""
