"""Calls of the op that rebuilds and turns heads."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from flashsvd.kernels.rebuild import Run, rebuild_rotated


class RebuildCase(NamedTuple):
    """One call, whose heads have a rank each; own: whether every sequence has positions of its own."""

    batch: int
    seq: int
    ranks: tuple[int, ...]
    head_dim: int
    bias: bool = True
    own: bool = False
    others: int = 0
    """Columns of p behind those of the heads."""

    @property
    def runs(self) -> tuple[Run, ...]:
        runs, head, at = [], 0, 0
        for rank, alike in itertools.groupby(self.ranks):
            runs.append(Run(head, len(list(alike)), rank, at))
            head, at = head + runs[-1].count, runs[-1].columns.stop
        return tuple(runs)

    @property
    def name(self) -> str:
        ranks = "+".join(f"{run.count}x{run.rank}" for run in self.runs)
        flags = f"{'' if self.bias else ' no bias'}{' own' if self.own else ''}"
        return f"B{self.batch} S{self.seq} {ranks} h{self.head_dim}{flags}"


@dataclass(frozen=True)
class RebuildInputs:
    """The arguments of one call, whose rows [B·S, R] and factors [Rqk·h] may lie among others' memory."""

    rows: torch.Tensor
    factors: torch.Tensor
    bias: torch.Tensor | None
    cos: torch.Tensor
    sin: torch.Tensor
    runs: tuple[Run, ...]
    batch: int

    @property
    def p(self) -> torch.Tensor:
        return self.rows.unflatten(0, (self.batch, self.cos.shape[1]))

    @property
    def second(self) -> torch.Tensor:
        return self.factors.unflatten(0, (-1, self.cos.shape[2]))

    def arguments(self) -> dict[str, Any]:
        """By name, but for the backend."""
        shared = {"bias": self.bias, "cos": self.cos, "sin": self.sin, "runs": self.runs}
        return {"p": self.p, "second": self.second, **shared}

    def run(self, backend: str | None) -> torch.Tensor:
        return rebuild_rotated(**self.arguments(), backend=backend)


def rebuild_inputs(
    case: RebuildCase, dtype: torch.dtype, angle_dtype: torch.dtype | None = None
) -> RebuildInputs:
    """Random activations and factors that make heads of about unit size, at positions that are not in order."""
    generator = torch.Generator().manual_seed(case.seq)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    second = torch.cat([normal(rank, case.head_dim) / rank**0.5 for rank in case.ranks])
    positions = torch.randint(500, (case.batch if case.own else 1, case.seq, 1), generator=generator)
    pairs = 10_000.0 ** -torch.arange(0, 1, 2 / case.head_dim, dtype=torch.float64)
    angles = (positions * pairs).repeat(1, 1, 2)
    return RebuildInputs(
        normal(case.batch * case.seq, sum(case.ranks) + case.others).to(dtype),
        second.flatten().to(dtype),
        (0.5 * normal(len(case.ranks) * case.head_dim)).to(dtype) if case.bias else None,
        angles.cos().to(angle_dtype or dtype),
        angles.sin().to(angle_dtype or dtype),
        case.runs,
        case.batch,
    )
