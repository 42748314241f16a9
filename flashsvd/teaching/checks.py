"""One line that says whether a result is right, and if it is not, which mistake gives just that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from flashsvd.errors import FlashSVDError

Mark = Literal["✓", "✗", "○"]
# What rounding of fp32 sums over a few thousand terms leaves, relative to the largest number of the reference.
WITHIN = 1e-4
# Closer than this to what a mistake gives, and the mistake is named.
ALIKE = 1e-3


@dataclass(frozen=True)
class Verdict:
    """✓ right, ✗ wrong, ○ not written yet; and one line that says how far off."""

    mark: Mark
    words: str

    def __str__(self) -> str:
        return f"{self.mark} {self.words}"


def check(
    name: str, mine: Any, reference: Any, *, within: float = WITHIN, mistakes: Mapping[str, Any] | None = None
) -> None:
    """Prints whether `mine` is `reference`: numbers, tensors of one shape, or tuples and lists of those.

    `within` is the largest error, relative to the reference's largest magnitude; whole numbers, texts and truths must
    be equal. `mistakes` says in words what went wrong where `mine` is one of the values given there.
    """
    print(verdict(name, mine, reference, within=within, mistakes=mistakes or {}))


def exercise(
    name: str,
    attempt: Callable[[], Any],
    reference: Any,
    *,
    within: float = WITHIN,
    mistakes: Mapping[str, Any] | None = None,
) -> None:
    """`check` for what the reader writes: a stub is no error, and an exception is one line.

    `attempt` runs the reader's code; it counts as not written while it gives None or `...`, or raises
    NotImplementedError.
    """
    print(attempted(name, attempt, reference, within=within, mistakes=mistakes or {}))


def attempted(
    name: str, attempt: Callable[[], Any], reference: Any, *, within: float, mistakes: Mapping[str, Any]
) -> Verdict:
    """What `exercise` prints."""
    unwritten = Verdict("○", f"{name}: not written yet")
    try:
        mine = attempt()
    except NotImplementedError:
        return unwritten
    except Exception as error:
        said = str(error).strip().splitlines()
        return Verdict("✗", f"{name}: your code raised {type(error).__name__}: {said[-1] if said else ''}")
    if any(value is None or value is ... for value in (mine if isinstance(mine, (tuple, list)) else [mine])):
        return unwritten
    return verdict(name, mine, reference, within=within, mistakes=mistakes)


def verdict(name: str, mine: Any, reference: Any, *, within: float, mistakes: Mapping[str, Any]) -> Verdict:
    """What `check` prints.

    >>> str(verdict("area", 12.0, 6.0, within=1e-6, mistakes={"the half is missing": 12.0}))
    '✗ area: the half is missing'
    >>> str(verdict("area", 6.0000001, 6.0, within=1e-6, mistakes={}))
    '✓ area: within 1.7e-08 of the reference (1e-06 allowed)'
    """
    try:
        error = _error(mine, reference)
    except _Unlike as unlike:
        wrong = str(unlike)
    else:
        if not error:
            return Verdict("✓", f"{name}: equal")
        if error <= within:
            return Verdict("✓", f"{name}: within {error:.1e} of the reference ({within:g} allowed)")
        wrong = _difference(mine, reference, error)
    known = (words for words, value in mistakes.items() if _alike(mine, value))
    return Verdict("✗", f"{name}: {next(known, wrong)}")


class _Unlike(FlashSVDError):
    """Two things that cannot be compared: another type, shape or length."""


def _error(mine: Any, reference: Any) -> float | None:
    """Relative to the reference's largest magnitude; None where there is nothing to round and both are equal."""
    if isinstance(reference, (tuple, list)):
        if not isinstance(mine, Sequence) or isinstance(mine, str) or len(mine) != len(reference):
            raise _Unlike(f"expected {len(reference)} values, got {_called(mine)}")
        errors = [_error(a, b) for a, b in zip(mine, reference, strict=True)]
        found = [error for error in errors if error is not None]
        return max(found) if found else None
    if isinstance(reference, torch.Tensor):
        if not isinstance(mine, torch.Tensor):
            raise _Unlike(f"expected a tensor {tuple(reference.shape)}, got {_called(mine)}")
        if mine.shape != reference.shape:
            raise _Unlike(f"expected shape {tuple(reference.shape)}, got {tuple(mine.shape)}")
        a, b = mine.detach().cpu().double(), reference.detach().cpu().double()
        # Infinities stand for masked scores and must be at the same places; NaN is never right.
        if bool(a.isnan().any()) and not bool(b.isnan().any()):
            return float("inf")
        same = a == b
        apart = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=0.0, posinf=float("inf"))
        largest = b[b.isfinite()].abs().max().item() if bool(b.isfinite().any()) else 1.0
        return float(apart.max()) / max(largest, 1e-30) if apart.numel() else 0.0
    if isinstance(reference, float):
        if isinstance(mine, torch.Tensor) and mine.numel() == 1:
            mine = mine.item()
        if isinstance(mine, bool) or not isinstance(mine, (int, float)):
            raise _Unlike(f"expected a number, got {_called(mine)}")
        if mine != mine:
            return float("inf")
        return abs(mine - reference) / max(abs(reference), 1e-30)
    if isinstance(mine, torch.Tensor) and mine.numel() == 1:
        mine = mine.item()
    return None if mine == reference else float("inf")


def _alike(mine: Any, wrong: Any) -> bool:
    try:
        error = _error(mine, wrong)
    except _Unlike:
        return False
    return error is None or error <= ALIKE


def _difference(mine: Any, reference: Any, error: float) -> str:
    if isinstance(reference, (tuple, list)):
        errors = [_error(one, right) or 0.0 for one, right in zip(mine, reference, strict=True)]
        worst = errors.index(max(errors))
        said = _difference(mine[worst], reference[worst], errors[worst])
        return f"value {worst + 1} of {len(reference)}: {said}"
    if isinstance(reference, torch.Tensor):
        if bool(mine.isnan().any()):
            return f"{int(mine.isnan().sum())} of {mine.numel()} values are NaN"
        apart = (mine.detach().cpu().double() - reference.detach().cpu().double()).abs().nan_to_num(nan=0.0)
        place = tuple(int(i) for i in torch.unravel_index(apart.argmax(), apart.shape))
        return (
            f"off by {error:.1e} of the largest value; most at {list(place)}, where {float(mine[place]):.4g} "
            f"should be {float(reference[place]):.4g}"
        )
    return (
        f"got {mine}, expected something else" if error == float("inf") else f"got {mine}, off by {error:.1%}"
    )


def _called(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    return f"{type(value).__name__} {' '.join(repr(value).split())}"[:80]
