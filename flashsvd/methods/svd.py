"""Plain SVD: the best rank-k approximation of the weight itself (Eckart and Young 1936)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashsvd.methods.base import Method, Spectrum, decompose_plain

if TYPE_CHECKING:
    import torch

    from flashsvd.stats.base import InputStats


def _decompose(weight: torch.Tensor, stats: InputStats | None) -> Spectrum:
    return decompose_plain(weight)


def method() -> Method:
    return Method("svd", "SVD", "Eckart and Young, Psychometrika 1 (1936)", _decompose)
