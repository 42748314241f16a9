"""Slides: what each page looks like from the back row. One file per page, by the page's name, each with

`show(look)`, which draws it; and `wanted(look)`, if "Run this step" starts something else there than a comparison: its
request, None where nothing can be run. A page without a file shows the four numbers.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from app.components import slide_parts
from app.components.slide_parts import Look


@functools.cache
def slides() -> Mapping[str, ModuleType]:
    """Every slide by its page's name."""
    names = (entry.name for entry in pkgutil.iter_modules(__path__))
    return MappingProxyType({name: importlib.import_module(f"{__name__}.{name}") for name in names})


def slide(view: str, look: Look) -> None:
    """Draws the slide of a page."""
    module = slides().get(view)
    if module is None:
        slide_parts.numbers(look)
    else:
        module.show(look)


def wanted(view: str, look: Look) -> Any:
    """The request of what a live run of this slide is; None where there is none."""
    module = slides().get(view)
    if module is not None and hasattr(module, "wanted"):
        return module.wanted(look)
    return look.settings.compare_request()
