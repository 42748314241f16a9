"""Compression methods: one file each, every one an SVD in another norm. Each defines METHOD."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from flashsvd.errors import InputError
from flashsvd.methods.base import Method


@functools.cache
def methods() -> Mapping[str, Method]:
    """Every method by its name."""
    found = {}
    for entry in pkgutil.iter_modules(__path__):
        if entry.name != "base":
            method = importlib.import_module(f"{__name__}.{entry.name}").METHOD
            found[method.name] = method
    return MappingProxyType(found)


def method_named(name: str) -> Method:
    """Raises InputError where there is no such method."""
    if name not in methods():
        raise InputError(f"method must be one of {', '.join(sorted(methods()))}, got {name!r}")
    return methods()[name]
