"""Activation-aware SVD: input channels count by how large they are (arXiv 2312.05821).

M = diag(s^α), s_j the mean of |x_j|. At α = 0 it is plain SVD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashsvd.errors import InputError
from flashsvd.methods.base import Method, Spectrum, decompose_diagonal, positive

if TYPE_CHECKING:
    import torch

    from flashsvd.stats.base import InputStats


def method(alpha: float = 0.5) -> Method:
    """Raises InputError for alpha outside 0 to 2."""
    if not 0 <= alpha <= 2:
        raise InputError(f"asvd: alpha must be from 0 to 2, got {alpha:g}")

    def decompose(weight: torch.Tensor, stats: InputStats | None) -> Spectrum:
        assert stats is not None and stats.mean_abs is not None
        return decompose_diagonal(weight, positive(stats.mean_abs)[None] ** alpha)

    return Method(
        "asvd", "ASVD", "Yuan et al., arXiv 2312.05821, sec. 3.2", decompose, needs=frozenset({"mean_abs"})
    )
