"""What a method is, and the full Spectrum that it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Spectrum:
    """A full decomposition of the units of one slot: W ≈ U[:, :k]·diag(σ[:k])·V[:k] at every rank k at once.

    u [units, m, p], sigma [units, p] (largest first), v [units, p, n], with p = min(m, n).
    """

    u: torch.Tensor
    sigma: torch.Tensor
    v: torch.Tensor

    def factors(self, unit: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Left [m, rank] and right [rank, n] factors of one unit, √σ on each side.

        The even split keeps both factors' entries in the same range, which fp16 needs.
        """
        root = self.sigma[unit, :rank].sqrt()
        return self.u[unit, :, :rank] * root, root[:, None] * self.v[unit, :rank]


@dataclass(frozen=True)
class Method:
    """A named way to decompose. `decompose` takes a weight [units, m, n], float32 or float64."""

    name: str
    title: str
    source: str
    decompose: Callable[[torch.Tensor], Spectrum]
