"""Basis Sharing: neighbouring layers share the right factor of a projection (arXiv 2410.03765).

The weights of a group of layers are stacked, [W1; ...; Wg], and whitened by the sum of their Grams: one V for all,
and a U of each layer's own. o and down are left to each layer, as the paper finds their inputs too different.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashsvd.errors import InputError
from flashsvd.methods.base import Method, Spectrum, decompose_gram

if TYPE_CHECKING:
    import torch

    from flashsvd.stats.base import InputStats


def _decompose(weight: torch.Tensor, stats: InputStats | None) -> Spectrum:
    assert stats is not None and stats.gram is not None
    return decompose_gram(weight, stats.gram.to(weight.device))


def method(group: int = 2) -> Method:
    """group: layers that share. Raises InputError below 2."""
    if group < 2:
        raise InputError(f"basis_sharing: group must be at least 2 layers, got {group}")
    return Method(
        "basis_sharing",
        "Basis Sharing",
        "Wang et al., arXiv 2410.03765, sec. 3.1",
        _decompose,
        needs=frozenset({"gram"}),
        group=group,
        shared_slots=frozenset({"q", "k", "v", "gate", "up"}),
    )
