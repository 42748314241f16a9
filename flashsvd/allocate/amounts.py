"""Amounts as people write them: 3M parameters, 8GB, 1 %."""

from __future__ import annotations

import math
import re

from flashsvd.errors import InputError

_AMOUNT = re.compile(r"\s*(?P<number>[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(?P<unit>[A-Za-z%]*)\s*")
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_BYTES = {"": 1, "b": 1} | {
    unit + tail: base**power
    for power, unit in enumerate("kmgt", start=1)
    for tail, base in (("b", 1000), ("ib", 1024))
}


def parse_count(text: str, what: str) -> float:
    """`3M`, `1.5B`, `2e9` or `110000000` -> a number.

    >>> parse_count("3M", "--parameters")
    3000000.0

    Raises:
        InputError: not a number above 0 with such a unit; `what` says what it is of.
    """
    return _parse(text, what, _COUNTS, "a number such as 3M, 1.5B or 110000000")


def parse_bytes(text: str, what: str) -> float:
    """`8GB` (10⁹), `8GiB` (2³⁰), `500MB` or plain bytes -> bytes. Raises InputError for anything else.

    >>> parse_bytes("8 GiB", "--bytes") == 8 * 2**30
    True
    """
    return _parse(text, what, _BYTES, "a size such as 8GB, 8GiB or 500MB")


def parse_share(text: str, what: str) -> float:
    """`1%` or `0.01` -> 0.01. Raises InputError for anything that is no share from 0 to 1.

    >>> parse_share("1 %", "--max-loss")
    0.01
    """
    wanted = "a share such as 1% or 0.01"
    found = _AMOUNT.fullmatch(text)
    if found is None or found["unit"] not in ("", "%"):
        raise InputError(f"{what} takes {wanted}, got {text!r}")
    value = float(found["number"]) / (100 if found["unit"] else 1)
    if value > 1:
        raise InputError(f"{what} takes {wanted}, at most 100%, got {text!r}")
    return value


def _parse(text: str, what: str, units: dict[str, int], wanted: str) -> float:
    found = _AMOUNT.fullmatch(text)
    if found is None or found["unit"].lower() not in units:
        raise InputError(f"{what} takes {wanted}, got {text!r}")
    value = float(found["number"]) * units[found["unit"].lower()]
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{what} takes {wanted}, above 0, got {text!r}")
    return value
