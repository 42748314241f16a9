"""What all tabs of one server share: the worker, the store of runs, the recordings that ship. All read-only here."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import streamlit as st

from flashsvd.errors import FlashSVDError, ModelError
from flashsvd.models.family import families, family_of
from flashsvd.models.shape import ModelShape
from flashsvd.models.sources import model_type_of, resolve

if TYPE_CHECKING:
    from flashsvd.jobs import JobService
    from flashsvd.recording import Recording
    from flashsvd.store import RunStore


@st.cache_resource(show_spinner=False, on_release=lambda service: service.close())
def jobs() -> JobService:
    """The one queue of the server. Making it starts the worker in the background."""
    from flashsvd.jobs import JobService

    return JobService()


@st.cache_resource(show_spinner=False)
def store() -> RunStore:
    from flashsvd.store import RunStore

    return RunStore()


def recording(model: str) -> Recording | None:
    """The recording shipped for a model; None where there is none.

    Raises:
        FlashSVDError: it cannot be read.
    """
    from flashsvd.recording import find

    path = find(model)
    return None if path is None else _read(path, path.stat().st_mtime_ns)


@st.cache_resource(show_spinner=False, max_entries=8)
def _read(path: Path, changed: int) -> Recording:
    from flashsvd.recording import read

    return read(path)


def described(model: str) -> ModelShape | None:
    """A model's shape from its configuration alone; None for a hub id, which only the worker may fetch.

    Raises:
        FlashSVDError: unknown model, or a configuration that does not describe a supported one.
    """
    source = resolve(model)
    if source.kind == "hub":
        return None
    family = family_of(model_type_of(source))
    if source.folder is None:
        return _shape(family.model_type, json.dumps(dict(family.presets[source.name].config)))
    try:
        return _shape(family.model_type, (source.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, FlashSVDError):
            raise
        raise ModelError(f"the config.json of {model} does not describe its layers ({error})") from None


@functools.lru_cache(maxsize=32)
def _shape(model_type: str, config: str) -> ModelShape:
    # Presets leave out what the architecture's own default says; only the number of positions matters here.
    values = {"max_position_embeddings": 512} | json.loads(config)
    return families()[model_type].shape(SimpleNamespace(**values))
