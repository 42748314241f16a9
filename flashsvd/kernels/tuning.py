"""Opt-in choice of tiles by timing: with FLASHSVD_AUTOTUNE=1 a kernel tries a few tiles, once per kind of call.

Without the variable nothing here times, reads or writes anything, and every call runs its default tiles. With it, a
launch that is being prepared takes what `flashsvd.kernels.tuned_store` holds for it, or times its candidates on the
call's own tensors and stores what it found. The variable is looked at when a kind of call is first met; calls that a
process has met before keep what they run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from flashsvd.kernels.backend import interpreting, on_device
from flashsvd.kernels.gate import LIMITS
from flashsvd.kernels.layout import HeadLayout
from flashsvd.kernels.starter import Kept
from flashsvd.kernels.tuned_store import Entry, Store, now

VARIABLE = "FLASHSVD_AUTOTUNE"
MOST_CANDIDATES = 8
"""Tiles that are tried for one kind of call, the default among them."""
LEAST_GAIN = 0.02
"""The share of the default's time that other tiles have to save: what timing in one run can tell apart."""

_RUNS, _LEAST_RUNS = 20, 5
_SECONDS_EACH = 0.05
_FLUSH_BYTES = 2**28

T = TypeVar("T")

Clock = Callable[[Sequence[Callable[[], object]], torch.device], list[float]]
"""Median microseconds of each call."""

_met: Kept[Entry] = Kept()
"""What this process found or read, by file, kernel and key."""


@dataclass(frozen=True, eq=False)
class Trial(Generic[T]):
    """A kind of call whose tiles may be chosen.

    kernel, key: under which its tiles are stored; the key names all that may change the choice. candidates: tiles
    (frozen dataclasses) that are right for the call, the default first. out: memory of the trial's own, which looks
    like the call's output. start: makes a call that fills `out` by such tiles; it writes to nothing else.
    """

    kernel: str
    key: str
    candidates: tuple[T, ...]
    out: torch.Tensor
    start: Callable[[T], Callable[[], object]]


def wanted(tensor: torch.Tensor) -> bool:
    """Whether tiles of a kernel over `tensor` are to be looked up and tuned."""
    return os.environ.get(VARIABLE) == "1" and tensor.is_cuda and not interpreting()


@contextlib.contextmanager
def switched_on() -> Iterator[None]:
    """Sets the variable while inside, for the calls that this process meets first there."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def key_of(dtype: torch.dtype, **parts: object) -> str:
    """A key in words.

    >>> key_of(torch.bfloat16, seq=512, value=HeadLayout((40, 40, 8)), mask=False, window=None)
    'bfloat16 seq=512 value=40x2,8 mask=no window=none'
    """
    words = [str(dtype).removeprefix("torch.")]
    return " ".join([*words, *(f"{name}={_word(value)}" for name, value in parts.items())])


def like_output(out: torch.Tensor) -> torch.Tensor:
    """Other memory that looks like `out`, for a trial."""
    return torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device)


def choose(default: T, trial: Callable[[], Trial[T]], tensor: torch.Tensor, clock: Clock | None = None) -> T:
    """The tiles to run: the default unless tuning is `wanted` for `tensor`; then those stored for this kind of call,
    or those that win now, or the default where nothing may be timed or compared.

    Nothing is timed while the current stream is captured in a CUDA graph, or where memory for it is short.
    """
    if not wanted(tensor):
        return default
    with contextlib.suppress(torch.OutOfMemoryError), torch.no_grad(), on_device(tensor):
        return _chosen(trial(), tensor.device, clock or time_on_gpu)
    return default


def met() -> tuple[Entry, ...]:
    """What this process chose or read, in that order, for the last kinds of calls."""
    return tuple(_met.values())


def forget() -> None:
    """Forgets what this process met, so that the next kind of call is looked up on disk; what ops prepared stays."""
    _met.clear()


@functools.cache
def store_of(device: torch.device) -> Store:
    """The store for a GPU and the installed Triton."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    return Store(torch.cuda.get_device_properties(device).name, triton)


def fields_of(tiles: Any) -> dict[str, Any]:
    """A tile dataclass as JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(tiles)))
    return found


def stored_tiles(fields: Mapping[str, Any], candidates: Sequence[T]) -> T | None:
    """The candidate that has these fields; None for tiles that would not be tried here."""
    return next((tiles for tiles in candidates if _same(fields, fields_of(tiles))), None)


def tune(trial: Trial[T], device: torch.device, clock: Clock) -> Entry | None:
    """Runs, checks and times the candidates; None where the default's output is nothing to compare with.

    A candidate is left out where it does not compile or start, or where its output differs from the default's by more
    than the gate's limit for the dtype, before or after it was timed.
    """
    default, *others = trial.candidates
    call = trial.start(default)
    call()
    expected = trial.out.clone()
    size = _norm(expected)
    if not 0.0 < size < float("inf"):
        return None
    calls = [(default, call)]
    for tiles in others:
        # Whatever it is that a compiler or a driver raises.
        with contextlib.suppress(Exception):
            call = trial.start(tiles)
            if _agrees(call, trial.out, expected, size):
                calls.append((tiles, call))
    times = clock([call for _, call in calls], device)
    best, best_us = default, times[0]
    for us, (tiles, call) in sorted(zip(times, calls, strict=True), key=lambda timed: timed[0]):
        if us > (1.0 - LEAST_GAIN) * times[0]:
            break
        if _agrees(call, trial.out, expected, size):
            best, best_us = tiles, us
            break
    return Entry(trial.kernel, trial.key, fields_of(best), round(times[0], 3), round(best_us, 3), now())


def time_on_gpu(calls: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Median microseconds of each, timed in turn by events, with cold caches.

    Fewer than 20 runs, never under 5, where a call would take more than its 50 ms.
    """
    # Pushes the inputs out of the caches; the CPU launches the timed call meanwhile.
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
    for call in calls:
        call()
    torch.cuda.synchronize(device)
    times: list[list[float]] = [[] for _ in calls]
    ends = time.perf_counter() + _SECONDS_EACH * len(calls)
    for done in range(_RUNS):
        if done >= _LEAST_RUNS and time.perf_counter() > ends:
            break
        for call, found in zip(calls, times, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            begin.record()
            call()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) * 1e3)
    return [statistics.median(found) for found in times]


def _chosen(trial: Trial[T], device: torch.device, clock: Clock) -> T:
    default = trial.candidates[0]
    if len(trial.candidates) == 1:
        return default
    store = store_of(device)
    name = (trial.kernel, trial.key)
    place: tuple[Path, str, str] = (store.path, *name)
    entry = _met.find(place) or store.read().get(name)
    tiles = None if entry is None else stored_tiles(entry.tiles, trial.candidates)
    if tiles is None:
        if torch.cuda.is_current_stream_capturing():
            return default
        entry = tune(trial, device, clock)
        if entry is None:
            return default
        store.add([entry])
        tiles = stored_tiles(entry.tiles, trial.candidates)
    assert entry is not None
    _met.keep(place, entry)
    return default if tiles is None else tiles


def _agrees(call: Callable[[], object], out: torch.Tensor, expected: torch.Tensor, size: float) -> bool:
    """Whether a call fills `out` with what is expected. What it leaves out stays NaN, which agrees with nothing."""
    out.fill_(float("nan"))
    call()
    return _norm(out - expected) <= LIMITS[out.dtype] * size


def _norm(x: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _same(fields: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Equal, types and all: 1 is no True."""
    return json.dumps(fields, sort_keys=True) == json.dumps(others, sort_keys=True)


def _word(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, HeadLayout):
        return ("shared:" if value.shared else "") + _word(value.ranks)
    if not isinstance(value, tuple):
        return str(value).replace(" ", "_")
    runs: list[tuple[str, int]] = []
    for word in map(_word, value):
        before, count = runs.pop() if runs and runs[-1][0] == word else (word, 0)
        runs.append((before, count + 1))
    return ",".join(word if count == 1 else f"{word}x{count}" for word, count in runs)
