"""Runs several ways of computing one thing: prepare, check, time in turn, then memory. One that fails is one line."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from flashsvd.bench.counts import Work
from flashsvd.bench.rows import Baselines, Row, rates, with_ratios
from flashsvd.errors import Cancelled
from flashsvd.measure.ceilings import Ceilings
from flashsvd.measure.latency import quantiles, time_engines
from flashsvd.progress import Progress
from flashsvd.results import GateReport, Quantiles

_LONGEST_REASON = 200


@dataclass(frozen=True)
class Prepared:
    """A contestant that is ready to run.

    call: one run, on the same input each time. checked: the part of its result that is judged. peak: bytes alive at
    most during a call beyond what was there before, or None where the device cannot tell. before: puts it back to
    where every call starts from, outside its time. more: other fields of its row, asked once it has been timed. work:
    what is counted for it, where only having made it tells. told: milliseconds of the parts of every call so far, as
    the call itself took them, where the time around it is not what a row is about.
    """

    call: Callable[[], object]
    checked: Callable[[object], torch.Tensor]
    peak: Callable[[], int | None]
    weight_bytes: int
    before: Callable[[], object] | None = None
    more: Callable[[], Mapping[str, Any]] = dict
    work: Work | None = None
    told: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True)
class Contestant:
    """One way of running: what it is in words, its work on paper, and how it is made.

    left_out: why it cannot run here, where it cannot.
    """

    what: str
    work: Work
    prepare: Callable[[], Prepared]
    left_out: str | None = None


Judge = Callable[[str, torch.Tensor], GateReport]
"""The verdict on a contestant's checked output, by its name."""


@dataclass(frozen=True)
class Terms:
    """How a contest is run. before: called ahead of every timed call, such as to flush caches. steps: equal parts that
    every call is made of, one of which a row tells the time of. warm: untimed calls of each, as many as
    `flashsvd.measure.latency.time_engines` thinks right if None."""

    device: torch.device
    dtype: str
    ceilings: Ceilings
    baselines: Baselines
    repeats: int
    budget_seconds: float
    before: Callable[[], object] | None = None
    steps: int = 1
    warm: int | None = None


def run_contest(
    contestants: Mapping[str, Contestant], judge: Judge, terms: Terms, progress: Progress
) -> tuple[Row, ...]:
    """A row for every contestant, in order.

    What fails while it is made, run or checked becomes a row that says so. Running out of memory while all are
    timed together is raised as torch.OutOfMemoryError: there is no telling whose fault it was.
    """
    rows: dict[str, Row] = {}
    ready: dict[str, Prepared] = {}
    gates: dict[str, GateReport] = {}
    for index, (name, contestant) in enumerate(contestants.items()):
        progress(f"Preparing {name}: {contestant.what}", 0.5 * index / len(contestants))
        rows[name] = Row(name, contestant.what, "measured")
        if contestant.left_out is not None:
            rows[name] = replace(rows[name], status="left out", reason=contestant.left_out)
            continue
        outcome = _attempt(name, contestant, judge)
        if isinstance(outcome, str):
            rows[name] = replace(rows[name], status="failed", reason=outcome)
            forget(terms.device)
        else:
            ready[name], gates[name] = outcome
    found = {}
    if ready:
        found = time_engines(
            {name: prepared.call for name, prepared in ready.items()},
            terms.device,
            repeats=terms.repeats,
            budget_seconds=terms.budget_seconds,
            progress=lambda share: progress("Timing", 0.5 + 0.4 * min(share, 1.0)),
            before=lambda name: _before(terms, ready[name]),
            warm=terms.warm,
        )
    for name, (whole, repeats) in found.items():
        progress("Measuring memory", 0.95)
        latency = Quantiles(*(value / terms.steps for value in (whole.p20, whole.p50, whole.p80)))
        told = ready[name].told
        if told is not None:
            latency = quantiles([part for call in told[-repeats:] for part in call])
        rows[name] = replace(
            rows[name],
            latency_ms=latency,
            repeats=repeats,
            peak_bytes=ready[name].peak(),
            weight_bytes=ready[name].weight_bytes,
            gate=gates[name],
            **rates(ready[name].work or contestants[name].work, latency, terms.dtype, terms.ceilings),
            **ready[name].more(),
        )
    return with_ratios(tuple(rows.values()), terms.baselines)


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says.

    >>> one_line(ValueError("no such shape\\nand more"))
    'ValueError: no such shape'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"


def _before(terms: Terms, prepared: Prepared) -> None:
    for prepare in (prepared.before, terms.before):
        if prepare is not None:
            prepare()


def _attempt(name: str, contestant: Contestant, judge: Judge) -> tuple[Prepared, GateReport] | str:
    try:
        prepared = contestant.prepare()
        return prepared, judge(name, prepared.checked(prepared.call()))
    except Cancelled:
        raise
    except Exception as error:
        return one_line(error)


def forget(device: torch.device) -> None:
    """Gives back what contestants held that failed or are done, for those after them. What was compiled refers to
    itself: counting references does not free it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
