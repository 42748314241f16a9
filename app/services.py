"""What all tabs of one server share: the worker, the store of runs, the recordings that ship. All read-only here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from flashsvd.models.shape import ModelShape
from flashsvd.models.sources import resolve, shape_of
from flashsvd.results import Comparison, Curve

if TYPE_CHECKING:
    from flashsvd.jobs import JobService
    from flashsvd.recording import Recording
    from flashsvd.store import RunStore


@st.cache_resource(show_spinner=False, on_release=lambda service: service.close())
def jobs() -> JobService:
    """The one queue of the server. Making it starts the worker in the background; what ends well is stored.

    Stored here and not by the page: a tab that is closed loses no run.
    """
    from flashsvd.jobs import JobService

    # Three processes that load at once would take the cores from the first picture.
    return JobService(on_result=keep, idle_seconds=4.0)


def keep(result: object) -> None:
    """Stores a comparison or a curve; other results are not kept."""
    if isinstance(result, Comparison | Curve):
        store().add(result)


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
    """A model's shape from its configuration alone; None where only the worker can tell, as for a hub id.

    Raises:
        FlashSVDError: unknown model, or one of an architecture that is not supported.
    """
    return shape_of(resolve(model))
