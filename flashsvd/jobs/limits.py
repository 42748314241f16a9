"""How long a job may run and how much memory its process may take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from flashsvd.errors import InputError

SECONDS_VARIABLE = "FLASHSVD_JOB_SECONDS"
MEMORY_VARIABLE = "FLASHSVD_JOB_MEMORY"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Limits:
    """seconds: of one job, an hour unless told. memory_bytes: of the worker's process, None for no limit."""

    seconds: float = 3600.0
    memory_bytes: int | None = None


OWN_LIMITS = Limits()


def limits_from(environment: Mapping[str, str]) -> Limits:
    """Limits as the environment sets them.

    >>> limits_from({"FLASHSVD_JOB_SECONDS": "90", "FLASHSVD_JOB_MEMORY": "8 GiB"})
    Limits(seconds=90.0, memory_bytes=8589934592)

    Raises:
        InputError: not a positive number.
    """
    seconds, memory = environment.get(SECONDS_VARIABLE, ""), environment.get(MEMORY_VARIABLE, "")
    return Limits(
        _positive(SECONDS_VARIABLE, seconds, "seconds, such as 600") if seconds else Limits.seconds,
        _bytes(memory) if memory else None,
    )


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(r"\s*([\d.]*)\s*(.*?)\s*", text).groups()  # type: ignore[union-attr]
    wanted = "bytes, such as 8GiB or 6000MB"
    if unit.upper() not in _UNITS:
        raise InputError(f"{MEMORY_VARIABLE} must be {wanted}, got {text[:40]!r}")
    return int(_positive(MEMORY_VARIABLE, number, wanted) * _UNITS[unit.upper()])


def _positive(name: str, text: str, wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"{name} must be {wanted}, got {text[:40]!r}")
    return value
