"""Checkpoints that other tools compressed: read into factors, written as ours, and given back to transformers."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashsvd.checkpoints.base import Importer


@functools.cache
def importers() -> Mapping[str, Importer]:
    """Every published layout by its name: the files of `flashsvd.checkpoints.layouts`."""
    from flashsvd.checkpoints import layouts as package

    found = {}
    for entry in pkgutil.iter_modules(package.__path__):
        importer = importlib.import_module(f"{package.__name__}.{entry.name}").IMPORTER
        found[importer.name] = importer
    return MappingProxyType(found)
