"""`bench ffn`: act(P·U1ᵀ + b1)·V2ᵀ streamed, beside the cuBLAS products that it replaces."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.nn.functional import gelu, linear, relu, silu

from flashsvd.bench.chunked import CHUNK_TOKENS
from flashsvd.bench.contest import Contestant, Terms, run_contest
from flashsvd.bench.counts import Work, ffn_work
from flashsvd.bench.ops import (
    BUDGET_SECONDS,
    cache_flush,
    check_fits,
    check_seed,
    check_sizes,
    op_contestant,
    random_tensor,
)
from flashsvd.bench.rows import Baselines, Row, command_of
from flashsvd.errors import InputError
from flashsvd.kernels.ffn import flash_svd_ffn
from flashsvd.kernels.gate import check
from flashsvd.measure.ceilings import Ceilings
from flashsvd.models.load import pick_device, pick_dtype
from flashsvd.progress import Progress
from flashsvd.results import GateReport

BASELINES = Baselines(latency="cublas", peak="cublas")
_REFERENCE_ROWS = 2048

_ACTIVATE: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(gelu, approximate="tanh"),
    "relu": relu,
    "silu": silu,
}
"""The activations as a user would call them."""


@dataclass(frozen=True)
class FfnRequest:
    """One point: rows M, width D, rank R1 and, where it differs, rank_out R2."""

    rows: int = 16384
    width: int = 3072
    rank: int = 240
    rank_out: int | None = None
    activation: str = "gelu"
    dtype: str = "bf16"
    device: str = "auto"
    repeats: int = 50
    seed: int = 0

    bench = "ffn"
    baselines = BASELINES

    @property
    def ranks(self) -> tuple[int, int]:
        """R1 and R2."""
        return self.rank, self.rank if self.rank_out is None else self.rank_out

    def check(self) -> None:
        """Raises InputError for a size, dtype or activation that cannot run."""
        rank_in, rank_out = self.ranks
        check_sizes(rows=self.rows, width=self.width, rank=rank_in, rank_out=rank_out, repeats=self.repeats)
        check_seed(self.seed)
        pick_dtype(self.dtype)
        if self.activation not in _ACTIVATE:
            raise InputError(f"activation must be one of {', '.join(_ACTIVATE)}, got {self.activation!r}")

    def config(self) -> dict[str, Any]:
        """The setting as plain values."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"rank_out": self.ranks[1]}

    def command(self) -> str:
        """The command that measures this point again."""
        options = {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}
        return command_of(self.bench, (), options)


@dataclass(frozen=True, eq=False)
class Inputs:
    """p [M, R1], u1 [D, R1], b1 [D], v2 [R2, D]."""

    p: torch.Tensor
    u1: torch.Tensor
    b1: torch.Tensor
    v2: torch.Tensor
    activation: str

    def materialised(self, p: torch.Tensor) -> torch.Tensor:
        """The op as two products on rows of p, with everything between them in memory."""
        return _ACTIVATE[self.activation](linear(p, self.u1, self.b1)) @ self.v2.T

    def exact(self) -> torch.Tensor:
        """The op in float64, [M, R2]."""
        wide = replace(self, u1=self.u1.double(), b1=self.b1.double(), v2=self.v2.double())
        return torch.cat([wide.materialised(part.double()) for part in self.p.split(_REFERENCE_ROWS)])


def bench_ffn(request: FfnRequest, ceilings: Ceilings, progress: Progress) -> tuple[str, tuple[Row, ...]]:
    """Measures one point; returns what ran in words and the rows.

    Raises:
        DeviceError: no such GPU.
        OutOfMemoryError, torch.OutOfMemoryError: the point does not fit.
    """
    device, dtype = pick_device(request.device), pick_dtype(request.dtype)
    rank_in, rank_out = request.ranks
    about = (
        f"rows {request.rows}, width {request.width}, ranks {rank_in} and {rank_out}, {request.activation}"
    )
    wide_bytes = 2 * request.rows * request.width * dtype.itemsize
    check_fits(about, wide_bytes, device)
    inputs = _inputs(request, device, dtype)
    exact = inputs.exact()
    baseline = inputs.materialised(inputs.p)

    def judge(_: str, out: torch.Tensor) -> GateReport:
        found = check(out, exact, baseline)
        return GateReport(found.passed, found.error, found.baseline_error, found.limit, "fp64")

    terms = Terms(
        device,
        request.dtype,
        ceilings,
        BASELINES,
        request.repeats,
        BUDGET_SECONDS[device.type],
        cache_flush(device),
    )
    return about, run_contest(contestants(inputs), judge, terms, progress)


def contestants(inputs: Inputs) -> Mapping[str, Contestant]:
    """Every way of running the op, by the name of its row."""
    rows, rank_in = inputs.p.shape
    rank_out, width = inputs.v2.shape
    device = inputs.p.device

    def entry(
        what: str, streamed: bool, call: Callable[[], torch.Tensor], why: str | None = None
    ) -> Contestant:
        work: Work = ffn_work(rows, width, rank_in, rank_out, inputs.p.element_size(), streamed=streamed)
        return op_contestant(what, work, call, device, left_out=why)

    p, u1, b1, v2, activation = inputs.p, inputs.u1, inputs.b1, inputs.v2, inputs.activation
    library = "cuBLAS" if device.type == "cuda" else "BLAS"
    return {
        "cublas": entry(
            f"two {library} products, the activation between", False, lambda: inputs.materialised(p)
        ),
        f"cublas-chunk{CHUNK_TOKENS}": entry(
            f"the same over {CHUNK_TOKENS} rows at a time", False, lambda: _chunked(inputs)
        ),
        "cublas-fused": entry(
            "activation in the first product's epilogue (torch._addmm_activation)",
            False,
            lambda: _fused(inputs),
            None
            if activation != "silu" and hasattr(torch, "_addmm_activation")
            else "torch has no such epilogue",
        ),
        "flash": entry(
            "flash_svd_ffn, the wide activation never stored",
            True,
            lambda: flash_svd_ffn(p, u1, b1, v2, activation=activation),
        ),
    }


def _chunked(inputs: Inputs) -> torch.Tensor:
    out = inputs.p.new_empty(len(inputs.p), len(inputs.v2))
    for start in range(0, len(out), CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        out[part] = inputs.materialised(inputs.p[part])
    return out


def _fused(inputs: Inputs) -> torch.Tensor:
    # On CUDA its GELU is the tanh form: whether that is near enough is for the gate to say.
    use_gelu = inputs.activation != "relu"
    t = torch._addmm_activation(inputs.b1, inputs.p, inputs.u1.T, use_gelu=use_gelu)
    return t @ inputs.v2.T


def _inputs(request: FfnRequest, device: torch.device, dtype: torch.dtype) -> Inputs:
    rank_in, rank_out = request.ranks
    generator = torch.Generator(device).manual_seed(request.seed)
    like = (dtype, device)
    return Inputs(
        p=random_tensor((request.rows, rank_in), like, generator),
        # Scaled so that the activation's input is about unit size, where its curve matters.
        u1=random_tensor((request.width, rank_in), like, generator, rank_in**-0.5),
        b1=random_tensor((request.width,), like, generator),
        v2=random_tensor((rank_out, request.width), like, generator, request.width**-0.5),
        activation=request.activation,
    )
