"""Weights, inputs and what is known of them, in float64."""

from __future__ import annotations

import torch

from flashsvd.methods import method_named
from flashsvd.methods.base import Spectrum
from flashsvd.stats.base import InputStats

ALL = ("svd", "fwsvd", "asvd", "whiten", "whiten:sqrt=cholesky", "whiten:centred", "basis_sharing")


def weight_of(units: int, m: int, n: int, seed: int) -> torch.Tensor:
    return torch.randn(units, m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs_of(tokens: int, n: int, seed: int) -> torch.Tensor:
    """Correlated inputs with a mean, and channels of very different size."""
    generator = torch.Generator().manual_seed(seed + 1)
    mixed = torch.randn(tokens, n, dtype=torch.float64, generator=generator) @ torch.randn(
        n, n, dtype=torch.float64, generator=generator
    )
    size = torch.logspace(-1, 1, n, dtype=torch.float64)[torch.randperm(n, generator=generator)]
    return mixed * size + torch.randn(n, dtype=torch.float64, generator=generator)


def stats_of(x: torch.Tensor, fisher: torch.Tensor | None = None) -> InputStats:
    return InputStats(len(x), gram=x.T @ x, mean=x.mean(0), mean_abs=x.abs().mean(0), fisher=fisher)


def decomposed(spec: str, weight: torch.Tensor, x: torch.Tensor, seed: int = 0) -> Spectrum:
    fisher = torch.rand(
        weight.shape[0], weight.shape[2], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return method_named(spec).decompose(weight, stats_of(x, fisher + 1e-3))


def truncated(spectrum: Spectrum, unit: int, rank: int) -> torch.Tensor:
    left, right = spectrum.factors(unit, rank)
    return left @ right


def output_loss(x: torch.Tensor, weight: torch.Tensor, approximation: torch.Tensor) -> torch.Tensor:
    return (x @ (weight - approximation).T).square().sum()
