"""The gate itself: what it lets through and what it says when it does not."""

from __future__ import annotations

import math

import pytest
import torch

from flashsvd.errors import InputError
from flashsvd.kernels.gate import LIMITS, assert_close, check, relative_error


def reference(seed: int = 0) -> torch.Tensor:
    return torch.randn(50, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_rounding_once_more_than_the_baseline_passes(dtype: torch.dtype) -> None:
    ref = reference()
    baseline = ref.to(dtype)
    assert check(baseline.clone(), ref, baseline).passed
    assert not check((baseline.double() * (1 + 8 * torch.finfo(dtype).eps)).to(dtype), ref, baseline).passed


def test_a_bad_baseline_does_not_excuse_more_than_the_limit() -> None:
    ref = reference()
    bad = (ref * 1.1).float()
    result = check(bad, ref, bad)
    assert not result.passed and result.limit == LIMITS[torch.float32]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_non_finite_element_is_an_infinite_error(value: float) -> None:
    ref = reference()
    out = ref.float()
    out[3, 4] = value
    assert relative_error(out, ref) == math.inf
    assert not check(out, ref, ref.float()).passed


def test_a_zero_reference_wants_zeros() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    assert relative_error(zero.float(), zero) == 0
    assert relative_error(zero.float() + 1e-30, zero) == math.inf


def test_one_wrong_row_of_a_thousand_is_caught() -> None:
    ref = torch.randn(1000, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for dtype in LIMITS:
        out = ref.to(dtype)
        out[-1] = 0
        assert not check(out, ref, ref.to(dtype)).passed


@pytest.mark.parametrize("value, shown", [(9.0, "got 9"), (math.nan, "got nan")])
def test_the_message_names_the_worst_element(value: float, shown: str) -> None:
    ref = reference()
    out = ref.float()
    out[7, 11] = value
    with pytest.raises(AssertionError) as error:
        assert_close(out, ref, ref.float(), "probe")
    message = str(error.value)
    assert message.startswith("probe: ") and "worst at (7, 11)" in message and shown in message
    assert f"expected {ref[7, 11].item():.6g}" in message and "0.1% of the elements" in message


def test_shapes_and_dtypes_must_fit() -> None:
    ref = reference()
    with pytest.raises(InputError, match="one shape"):
        relative_error(ref[0], ref)
    with pytest.raises(InputError, match="baseline must be"):
        check(ref.float(), ref, ref.half())
    with pytest.raises(InputError, match="the gate knows"):
        check(ref, ref, ref)
