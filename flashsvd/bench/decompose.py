"""How long one matrix takes to decompose, and whether what comes out is what the method promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from flashsvd.bench.ops import check_fits, check_seed, check_sizes
from flashsvd.errors import InputError
from flashsvd.measure.latency import time_engines
from flashsvd.measure.machine import describe_machine
from flashsvd.methods import method_named
from flashsvd.methods.base import Method, Spectrum
from flashsvd.models.load import pick_device
from flashsvd.progress import Progress
from flashsvd.results import Machine, Quantiles
from flashsvd.stats.base import InputStats

_BUDGET_SECONDS = 30.0
_TAIL_LIMIT = 1e-5
"""How far the loss may be from the tail of σ², of the whole: float32 factors of a float64 decomposition. Seen: 4e-9."""


@dataclass(frozen=True)
class DecomposeRequest:
    """One matrix [rows, columns] of random float32 weights, its inputs' statistics given, and the methods to time."""

    rows: int = 4096
    columns: int = 11008
    methods: tuple[str, ...] = ("svd", "whiten")
    device: str = "auto"
    repeats: int = 3
    seed: int = 0


@dataclass(frozen=True)
class DecomposeRow:
    """One method: seconds of a decomposition, and its check.

    tail_error: |loss - Σ tail σ²| / loss at rank 0, the largest over three ranks, the loss measured in the method's own
    norm; passed: that is within the limit.
    """

    method: str
    seconds: Quantiles
    repeats: int
    tail_error: float
    passed: bool


@dataclass(frozen=True)
class DecomposeBench:
    """The rows of one run. `created` is UTC, ISO 8601."""

    created: str
    machine: Machine
    request: DecomposeRequest
    rows: tuple[DecomposeRow, ...]


def bench_decompose(request: DecomposeRequest, progress: Progress | None = None) -> DecomposeBench:
    """Times every method on the same matrix, in turn.

    Raises:
        InputError: a size below 1, no method, or one that there is no norm to check in.
        OutOfMemoryError: the matrix and its Gram do not fit.
    """
    tell = progress or (lambda stage, share: None)
    check_sizes(rows=request.rows, columns=request.columns, repeats=request.repeats)
    check_seed(request.seed)
    methods = {spec: method_named(spec) for spec in request.methods}
    if not methods:
        raise InputError("name at least one method")
    device = pick_device(request.device)
    larger = max(request.rows, request.columns)
    check_fits(
        f"a matrix of {request.rows} x {request.columns}",
        8 * (3 * request.rows * request.columns + 3 * request.columns**2 + 2 * larger),
        device,
    )
    tell("Drawing the inputs", 0.0)
    weight, stats = _inputs(request, device)
    found: dict[str, Spectrum] = {}

    def call(spec: str, method: Method) -> Callable[[], object]:
        def run() -> None:
            found[spec] = method.decompose(weight, stats)

        return run

    timed = time_engines(
        {spec: call(spec, method) for spec, method in methods.items()},
        device,
        repeats=request.repeats,
        budget_seconds=_BUDGET_SECONDS,
        progress=lambda share: tell("Decomposing", 0.1 + 0.8 * share),
    )
    rows = []
    for spec, method in methods.items():
        milliseconds, repeats = timed[spec]
        error = _tail_error(method, weight[0], stats, found[spec])
        seconds = Quantiles(milliseconds.p20 / 1e3, milliseconds.p50 / 1e3, milliseconds.p80 / 1e3)
        rows.append(DecomposeRow(method.spec, seconds, repeats, error, error <= _TAIL_LIMIT))
    tell("Done", 1.0)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return DecomposeBench(created, describe_machine(device), request, tuple(rows))


def _inputs(request: DecomposeRequest, device: torch.device) -> tuple[torch.Tensor, InputStats]:
    """A weight [1, rows, columns], and statistics of correlated inputs whose channels differ by a factor of 1000."""
    generator = torch.Generator(device).manual_seed(request.seed)
    n = request.columns

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    size = torch.logspace(-2, 1, n, device=device)
    x = normal(2 * n, n) * size
    x += x[:, :1] * size
    stats = InputStats(
        len(x),
        gram=(x.T @ x).double(),
        mean=x.double().mean(0),
        mean_abs=x.abs().double().mean(0),
        fisher=size.double().square()[None],
    )
    return normal(1, request.rows, n), stats


def _tail_error(method: Method, weight: torch.Tensor, stats: InputStats, spectrum: Spectrum) -> float:
    """See `DecomposeRow`. The norm is told from what the method needs."""
    gram, fisher = stats.gram, stats.fisher
    assert gram is not None and fisher is not None
    sigma = spectrum.sigma[0].double()
    if spectrum.mean is not None or "mean_abs" in method.needs:
        raise InputError(
            f"{method.spec} has no norm to check in here: name svd, fwsvd, whiten or basis_sharing"
        )

    def loss(lost: torch.Tensor) -> float:
        if "gram" in method.needs:
            return float(((lost @ gram) * lost).sum())
        if "fisher" in method.needs:
            return float((lost.square() * fisher).sum())
        return float(lost.square().sum())

    wide = weight.double()
    whole, worst = loss(wide), 0.0
    for rank in sorted({1, (len(sigma) + 1) // 2, len(sigma)}):
        left, right = spectrum.factors(0, rank)
        worst = max(worst, abs(loss(wide - (left @ right).double()) - float(sigma[rank:].square().sum())))
    return worst / whole
