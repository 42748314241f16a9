"""Whitening: the best rank-k approximation of a linear's outputs on the calibration text, ‖X(W - Ŵ)ᵀ‖.

M is any root of the Gram G = XᵀX: they all give one Ŵ. DRONE (NeurIPS 2021), SVD-LLM (arXiv 2403.07378, Cholesky)
and SVD-LLM V2 (arXiv 2503.12340, Q·√Λ) are this method by other roads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from flashsvd.errors import CheckpointError, InputError
from flashsvd.methods.base import Method, Spectrum, decompose_gram, decompose_root

if TYPE_CHECKING:
    import torch

    from flashsvd.stats.base import InputStats

ALIASES = {"drone": "DRONE", "svd_llm": "SVD-LLM", "svd_llm_v2": "SVD-LLM V2"}


def method(sqrt: str = "eigh", centred: bool = False) -> Method:
    """sqrt: eigh or cholesky, for teaching and as a check. centred: on the covariance; the bias takes up the mean.

    Raises:
        InputError: another sqrt.
    """
    if sqrt not in ("eigh", "cholesky"):
        raise InputError(f"whiten: sqrt must be eigh or cholesky, got {sqrt!r}")

    def decompose(weight: torch.Tensor, stats: InputStats | None) -> Spectrum:
        assert stats is not None and stats.gram is not None
        gram, mean = stats.gram.to(weight.device), None
        if centred:
            assert stats.mean is not None
            mean = stats.mean.to(weight.device)
            gram = gram - stats.tokens * mean.outer(mean)
        spectrum = (
            decompose_gram(weight, gram) if sqrt == "eigh" else decompose_root(weight, _cholesky(gram, stats))
        )
        return replace(spectrum, mean=mean)

    return Method(
        "whiten",
        "Whitening",
        "Chen et al., DRONE, NeurIPS 2021; Wang et al., arXiv 2403.07378 and 2503.12340",
        decompose,
        needs=frozenset({"gram", "mean"} if centred else {"gram"}),
    )


def _cholesky(gram: torch.Tensor, stats: InputStats) -> torch.Tensor:
    import torch

    root, failed = torch.linalg.cholesky_ex(gram)
    width = gram.shape[0]
    # A matrix of rank below n passes on a lucky rounding: its smallest pivots are then noise.
    pivots = root.diagonal().square()
    if int(failed) or not torch.isfinite(root).all() or pivots.min() < 1e-12 * pivots.max():
        raise CheckpointError(
            f"the Gram of {width} inputs is singular ({stats.tokens} calibration tokens), so it has no Cholesky "
            f"root: give more than {width} tokens of varied text, or use sqrt=eigh"
        )
    return root
