"""The correctness gate: an implementation passes when it is as good as plain torch in its own dtype, near
enough.

Against a reference in fp64, the error may be twice that of the plain formula in the same dtype, and never
above a limit per dtype. Both are norms over the whole tensor, so one wrong row of a thousand is caught and
one rounding is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flashsvd.errors import InputError

LIMITS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
"""The largest relative error that passes, by dtype."""

BASELINE_FACTOR = 2.0
"""How many times the error of the same formula in plain torch is still as good as it."""


@dataclass(frozen=True)
class GateResult:
    """Whether an output passed, its relative error, that of the baseline, and the most that would have
    passed."""

    passed: bool
    error: float
    baseline_error: float
    limit: float


def relative_error(out: torch.Tensor, ref: torch.Tensor) -> float:
    """‖out − ref‖ / ‖ref‖ in fp64 over all elements; inf when `out` holds a NaN or infinity.

    Raises InputError when the shapes differ, as they would broadcast to a wrong number.

    >>> relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    0.09245003270420485
    """
    if out.shape != ref.shape:
        raise InputError(f"out and ref must have one shape, got {list(out.shape)} and {list(ref.shape)}")
    got, expected = out.detach().to("cpu", torch.float64), ref.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(got).all()):
        return math.inf
    difference = torch.linalg.vector_norm(got - expected).item()
    size = torch.linalg.vector_norm(expected).item()
    if difference == 0.0:
        return 0.0
    return math.inf if size == 0.0 else difference / size


def check(out: torch.Tensor, reference_fp64: torch.Tensor, baseline: torch.Tensor) -> GateResult:
    """Compare `out` with the formula in fp64, and with what plain torch makes of it in the same dtype.

    All three have one shape. Passes iff the relative error is at most twice the baseline's, and at most
    `LIMITS[out.dtype]`. A baseline that happens to be exact counts as a quarter of the dtype's epsilon, about
    what rounding the exact result costs. Raises InputError for a dtype without a limit or a baseline of
    another dtype.
    """
    if out.dtype not in LIMITS:
        raise InputError(f"the gate knows {', '.join(str(dtype) for dtype in LIMITS)}, got {out.dtype}")
    if baseline.dtype != out.dtype:
        raise InputError(f"baseline must be {out.dtype} like out, got {baseline.dtype}; run it in that dtype")
    error = relative_error(out, reference_fp64)
    baseline_error = relative_error(baseline, reference_fp64)
    floor = torch.finfo(out.dtype).eps / 4
    limit = min(LIMITS[out.dtype], max(BASELINE_FACTOR * baseline_error, floor))
    return GateResult(error <= limit, error, baseline_error, limit)


def assert_close(
    out: torch.Tensor, reference_fp64: torch.Tensor, baseline: torch.Tensor, name: str = "out"
) -> GateResult:
    """`check`, raising AssertionError with the worst index, both values and the share of elements that are
    off.

    An element is off when it differs by more than four times the gate's limit, taken of the larger of its
    reference and the reference's root mean square: single roundings are larger than their norm.
    """
    result = check(out, reference_fp64, baseline)
    if result.passed:
        return result
    got = out.detach().to("cpu", torch.float64)
    expected = reference_fp64.detach().to("cpu", torch.float64)
    difference = (got - expected).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    scale = expected.abs().clamp_min(expected.square().mean().sqrt().item())
    off = (difference > 4 * result.limit * scale).double().mean().item()
    worst = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    raise AssertionError(
        f"{name}: relative error {result.error:.3g} is above the limit {result.limit:.3g} (plain {out.dtype} "
        f"torch has {result.baseline_error:.3g}); worst at {worst}: got {got[worst].item():.6g}, expected "
        f"{expected[worst].item():.6g}; {off:.1%} of the elements are off"
    )
