"""Stands for `exercise` in a lesson that was solved: the solution must pass, every named mistake must not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flashsvd.teaching.checks import WITHIN, attempted


def exercise(
    name: str,
    attempt: Callable[[], Any],
    reference: Any,
    *,
    within: float = WITHIN,
    mistakes: Mapping[str, Any] | None = None,
) -> None:
    """Prints one line for the solution and one for each mistake, ✓ where the check said what it should."""
    known = mistakes or {}
    solved = attempted(name, attempt, reference, within=within, mistakes=known)
    print(f"{'✓' if solved.mark == '✓' else '✗'} solution of {name}: {solved}")
    for words, value in known.items():
        said = attempted(name, lambda value=value: value, reference, within=within, mistakes=known)
        named = said.mark == "✗" and said.words == f"{name}: {words}"
        print(f"{'✓' if named else '✗'} mistake of {name}: {said}")
