"""Compression methods: one file each, every one an SVD in another norm.

Each file defines method(**options) -> Method; its keyword arguments are the options, their defaults what a bare name
means. ALIASES are the names under which papers published the same thing.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from flashsvd.errors import InputError
from flashsvd.methods.base import Method


@functools.cache
def _makers() -> Mapping[str, Callable[..., Method]]:
    modules = [
        importlib.import_module(f"{__name__}.{entry.name}")
        for entry in pkgutil.iter_modules(__path__)
        if entry.name != "base"
    ]
    return MappingProxyType({module.method().name: module.method for module in modules})


@functools.cache
def _aliases() -> Mapping[str, tuple[str, str]]:
    """By alias: the method's name and the alias's title."""
    found = {}
    for name in _makers():
        module = importlib.import_module(f"{__name__}.{name}")
        for alias, title in getattr(module, "ALIASES", {}).items():
            found[alias] = (name, title)
    return MappingProxyType(found)


@functools.cache
def methods() -> Mapping[str, Method]:
    """Every method by its name, with its default options. Aliases are not listed."""
    return MappingProxyType({name: make() for name, make in _makers().items()})


def method_named(spec: str) -> Method:
    """A method by name or alias, with options after a colon.

    >>> method_named("asvd:alpha=0.3").options
    'alpha=0.3'
    >>> method_named("whiten:centred,sqrt=cholesky").spec
    'whiten:centred=true,sqrt=cholesky'
    >>> method_named("svd_llm").title
    'SVD-LLM'

    Raises:
        InputError: no such method or option, or a value outside what it takes.
    """
    name, _, text = spec.partition(":")
    maker, title = _aliases().get(name, (name, ""))
    if maker not in _makers():
        known = ", ".join([*sorted(_makers()), *sorted(_aliases())])
        raise InputError(f"method must be one of {known}, got {name!r}")
    options = _options(name, _makers()[maker], text)
    method = _makers()[maker](**options)
    words = ",".join(f"{key}={_word(value)}" for key, value in sorted(options.items()))
    return replace(method, options=words, name=name, title=title or method.title)


def _options(name: str, make: Callable[..., Method], text: str) -> dict[str, Any]:
    defaults = {key: parameter.default for key, parameter in inspect.signature(make).parameters.items()}
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, given, value = part.partition("=")
        if key not in defaults:
            known = ", ".join(f"{one}={_word(default)}" for one, default in defaults.items()) or "none"
            raise InputError(f"{name} has no option {key!r}: its options are {known}")
        found[key] = _read(name, key, value if given else "true", type(defaults[key]))
    return {key: value for key, value in found.items() if value != defaults[key]}


def _read(name: str, key: str, value: str, kind: type[Any]) -> Any:
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise InputError(f"{name}: {key} must be true or false, got {value!r}")
        return value.lower() == "true"
    try:
        return kind(value)
    except ValueError:
        word = {int: "a whole number", float: "a number"}.get(kind, "text")
        raise InputError(f"{name}: {key} must be {word}, got {value!r}") from None


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
