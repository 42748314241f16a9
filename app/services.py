"""What all tabs of one server share: the worker, the store of runs, the recordings that ship. All read-only here."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from flashsvd.curve_set import CurveSet
from flashsvd.errors import FlashSVDError
from flashsvd.models.family import family_of
from flashsvd.models.shape import ModelShape
from flashsvd.models.sources import model_type_of, resolve, shape_of
from flashsvd.results import Comparison, Curve

if TYPE_CHECKING:
    from flashsvd.jobs import JobService
    from flashsvd.onchip.sm_trace import SmTraces
    from flashsvd.recording import Recording
    from flashsvd.roofline_measured import Bench
    from flashsvd.store import RunStore


SCHEDULER_VARIABLE = "FLASHSVD_SCHEDULER"
"""Names the address of a Dask scheduler whose workers run the jobs, in place of one of our own."""


@st.cache_resource(show_spinner=False, on_release=lambda service: service.close())
def jobs() -> JobService:
    """The one queue of the server. Making it starts the worker in the background; what ends well is stored.

    Stored here and not by the page: a tab that is closed loses no run.
    """
    from flashsvd.jobs import JobService
    from flashsvd.jobs.limits import limits_from

    # Three processes that load at once would take the cores from the first picture.
    return JobService(
        os.environ.get(SCHEDULER_VARIABLE) or None,
        on_result=keep,
        idle_seconds=4.0,
        limits=limits_from(os.environ),
    )


def keep(result: object) -> None:
    """Stores a comparison, or curves with what their plans took to run; other results are not kept."""
    if isinstance(result, CurveSet):
        for curve in result.curves:
            store().add(curve)
        for table in result.costs:
            store().add_costs(table)
    elif isinstance(result, Comparison | Curve):
        store().add(result)


@st.cache_resource(show_spinner=False)
def store() -> RunStore:
    from flashsvd.store import RunStore

    opened = RunStore()
    with contextlib.suppress(FlashSVDError):
        opened.purge()
    return opened


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


def recorded_curves(model: str) -> CurveSet | None:
    """The curves of several methods that ship for a model; None where there are none.

    Raises:
        FlashSVDError: they cannot be read.
    """
    from flashsvd.curve_set import find_curves

    path = find_curves(model)
    return None if path is None else _read_curves(path, path.stat().st_mtime_ns)


@st.cache_resource(show_spinner=False, max_entries=8)
def _read_curves(path: Path, changed: int) -> CurveSet:
    from flashsvd.curve_set import read_curves

    return read_curves(path)


@st.cache_resource(show_spinner=False)
def bench() -> Bench:
    """Measured ceilings and whole models, from the bench recordings that ship.

    Raises:
        FlashSVDError: one cannot be read.
    """
    from flashsvd.roofline_measured import bundled, read_bench

    return read_bench(bundled())


def sm_traces() -> SmTraces:
    """The traces of programs on multiprocessors that ship.

    Raises:
        FlashSVDError: one cannot be read.
    """
    from flashsvd.onchip.sm_trace import files

    return _read_traces(tuple((path, path.stat().st_mtime_ns) for path in files()))


@st.cache_resource(show_spinner=False, max_entries=2)
def _read_traces(found: tuple[tuple[Path, int], ...]) -> SmTraces:
    from flashsvd.onchip.sm_trace import SmTraces, read_trace

    return SmTraces(read_trace(path) for path, _ in found)


def configuration(model: str) -> dict[str, Any]:
    """A model's configuration as far as it is on this machine; empty where only the worker can tell."""
    source = resolve(model)
    if source.kind == "hub":
        return {}
    if source.folder is not None:
        found: dict[str, Any] = json.loads((source.folder / "config.json").read_text("utf-8"))
        return found
    return dict(family_of(model_type_of(source)).presets[source.name].config)


def described(model: str) -> ModelShape | None:
    """A model's shape from its configuration alone; None where only the worker can tell, as for a hub id.

    Raises:
        FlashSVDError: unknown model, or one of an architecture that is not supported.
    """
    return shape_of(resolve(model))
