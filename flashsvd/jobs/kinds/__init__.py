"""Kinds of jobs: one file each, with a constant KIND. Nothing here imports torch before a job runs."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flashsvd.jobs.kind import Kind


@functools.cache
def kinds() -> Mapping[type, Kind]:
    """Every kind, by the class of its requests.

    >>> {"compare", "curve"} <= {kind.name for kind in kinds().values()}
    True
    """
    found = (
        importlib.import_module(f"{__name__}.{entry.name}").KIND for entry in pkgutil.iter_modules(__path__)
    )
    return MappingProxyType({kind.request: kind for kind in found})


def kind_of(request: Any) -> Kind:
    """The kind of a request. Raises TypeError for what is none."""
    kind = kinds().get(type(request))
    if kind is None:
        raise TypeError(f"no kind of job runs a {type(request).__name__}")
    return kind
