"""Plain SVD: the best rank-k approximation of the weight itself (Eckart and Young 1936)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashsvd.methods.base import Method, Spectrum

if TYPE_CHECKING:
    import torch


def _decompose(weight: torch.Tensor) -> Spectrum:
    # Loaded only where work is done: the app lists methods in a process that never loads torch.
    import torch

    u, sigma, v = torch.linalg.svd(weight, full_matrices=False)
    return Spectrum(u, sigma, v)


METHOD = Method(
    name="svd",
    title="SVD",
    source="Eckart and Young, Psychometrika 1 (1936)",
    decompose=_decompose,
)
