"""Whether JSON that may come from anyone has the types and values of a result."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from datetime import datetime
from typing import Any

from flashsvd.errors import InputError
from flashsvd.models.shape import ModelShape
from flashsvd.ranks import RankPlan
from flashsvd.results import Comparison, Curve, Metric

LONGEST = 300
"""Characters of a text that is no plan."""

LARGEST = 2**53
"""Of whole numbers: what JSON, SQLite and floats hold exactly."""

_SLOT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,39}")


def check_types(kind: Any, data: Any, place: str) -> None:
    """Raises InputError unless JSON is of the types that a result's fields have; missing fields are `from_json`'s."""
    if kind in (RankPlan, ModelShape):
        check_types(dict, data, place)
        return
    if dataclasses.is_dataclass(kind):
        check_types(dict, data, place)
        hints = typing.get_type_hints(kind)
        for item in dataclasses.fields(kind):
            if item.metadata.get("json", True) and item.name in data:
                check_types(hints[item.name], data[item.name], item.name)
        return
    arguments = typing.get_args(kind)
    if type(None) in arguments:
        if data is not None:
            check_types(next(argument for argument in arguments if argument is not type(None)), data, place)
    elif typing.get_origin(kind) is tuple:
        if not isinstance(data, list):
            raise InputError(f"{place} must be a list, got {_kind(data)}")
        for value in data:
            check_types(arguments[0], value, place)
    elif not _is(kind, data):
        raise InputError(f"{place} must be {_NAMES.get(kind, 'of another kind')}, got {_kind(data)}")
    elif kind is str and place != "plan":
        if len(data) > LONGEST:
            raise InputError(f"{place} has {len(data)} characters, at most {LONGEST} are read")
        if not data.isprintable():
            raise InputError(f"{place} holds characters that cannot be printed")


_NAMES = {
    str: "text",
    int: "a whole number below 2^53",
    float: "a finite number",
    bool: "true or false",
    dict: "an object",
}


def _is(kind: Any, value: Any) -> bool:
    if kind is bool or kind is str or kind is dict:
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if kind is int:
        return isinstance(value, int) and abs(value) <= LARGEST
    return math.isfinite(value) and abs(value) <= 1e18


def _kind(value: Any) -> str:
    names: dict[type, str] = {str: "text", list: "a list", dict: "an object", bool: "true or false"}
    return "nothing" if value is None else names.get(type(value), f"{str(value)[:30]}")


def check_common(result: Comparison | Curve) -> None:
    """What runs and curves have alike. Raises InputError."""
    try:
        datetime.fromisoformat(result.created)
    except ValueError:
        raise InputError(f"created must be a time in ISO 8601, got {result.created[:40]!r}") from None
    if result.dtype not in ("fp32", "fp16", "bf16"):
        raise InputError(f"dtype must be fp32, fp16 or bf16, got {result.dtype[:40]!r}")
    shape = result.model.shape
    if not shape.layers or any(not 1 <= len(slots) <= 64 for slots in shape.layers):
        raise InputError("a model has layers of 1 to 64 projections")
    names = {slot.name for _, slot in shape} | {shape.family}
    if not all(_SLOT.fullmatch(name) for name in names):
        raise InputError("a projection's name must be a plain word")


def check_metric(metric: Metric) -> None:
    """A score that can be drawn. Raises InputError."""
    ends = (metric.low, metric.value, metric.high)
    if metric.unit == "%" and not all(-1 <= value <= 1 for value in ends):
        raise InputError(f"{metric.name[:40]!r} must be from -1 to 1")
    if metric.unit != "%" and min(ends) <= 0:
        raise InputError(f"{metric.name[:40]!r} must be above 0")
    if metric.n < 1:
        raise InputError(f"{metric.name[:40]!r} was scored on nothing")
