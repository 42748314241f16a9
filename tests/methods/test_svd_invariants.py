"""The invariants of a truncated SVD that every later step leans on, in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashsvd.errors import InputError
from flashsvd.methods import method_named, methods

SVD = method_named("svd")


def _weight(units: int, m: int, n: int, seed: int) -> torch.Tensor:
    return torch.randn(units, m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _truncated(weight: torch.Tensor, unit: int, rank: int) -> torch.Tensor:
    left, right = SVD.decompose(weight).factors(unit, rank)
    return left @ right


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 24), st.integers(1, 24), st.integers(0, 10**6), st.data())
def test_the_loss_is_the_tail(units: int, m: int, n: int, seed: int, data: st.DataObject) -> None:
    weight = _weight(units, m, n, seed)
    unit = data.draw(st.integers(0, units - 1))
    rank = data.draw(st.integers(1, min(m, n)))
    sigma = SVD.decompose(weight).sigma[unit]
    residual = weight[unit] - _truncated(weight, unit, rank)
    torch.testing.assert_close(residual.square().sum(), sigma[rank:].square().sum(), rtol=1e-9, atol=1e-12)
    spectral = torch.linalg.matrix_norm(residual, 2)
    following = sigma[rank] if rank < len(sigma) else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(spectral, following, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 10**6))
def test_a_slice_is_a_fresh_fit_and_loss_falls(m: int, n: int, seed: int) -> None:
    weight = _weight(1, m, n, seed)
    losses = []
    for rank in range(1, min(m, n) + 1):
        u, sigma, v = torch.linalg.svd(weight[0])
        fresh = (u[:, :rank] * sigma[:rank]) @ v[:rank]
        sliced = _truncated(weight, 0, rank)
        torch.testing.assert_close(sliced, fresh, rtol=1e-9, atol=1e-10)
        losses.append((weight[0] - sliced).norm().item())
    assert all(later <= earlier + 1e-10 for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < 1e-10


def test_a_skipped_rank_would_be_noticed() -> None:
    weight = _weight(1, 8, 12, 0)
    left, right = SVD.decompose(weight).factors(0, 8)
    planted = left[:, :-1] @ right[:-1]
    assert (weight[0] - planted).norm() > 1e-3


def test_the_registry_names_what_it_has() -> None:
    assert "svd" in methods()
    with pytest.raises(InputError, match="method must be one of"):
        method_named("magic")
