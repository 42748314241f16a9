"""Pages with a fake worker and the fake recording, each test with its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app import services
from flashsvd.models.shape import ModelShape
from tests.app import fakes
from tests.app.browsing import browser, context, server, tab  # noqa: F401

MAIN = Path(__file__).resolve().parents[2] / "app" / "workbench.py"


@dataclass
class Desk:
    """What the pages see instead of a worker, a store and files."""

    jobs: fakes.FakeJobs = field(default_factory=fakes.FakeJobs)
    store: fakes.FakeStore = field(default_factory=fakes.FakeStore)
    recordings: dict[str, Any] = field(default_factory=lambda: {"stdlib-bert": fakes.recording()})
    curves: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    made = Desk()
    real: Callable[[str], ModelShape | None] = services.described
    st.cache_resource.clear()
    monkeypatch.setattr(services, "jobs", lambda: made.jobs)
    monkeypatch.setattr(services, "store", lambda: made.store)
    monkeypatch.setattr(services, "recording", made.recordings.get)
    monkeypatch.setattr(services, "recorded_curves", made.curves.get)
    monkeypatch.setattr(
        services, "described", lambda name: fakes.SHAPE if name == "stdlib-bert" else real(name)
    )
    return made


@pytest.fixture
def open_app(desk: Desk) -> Callable[..., AppTest]:
    """Opens a page with query parameters, and fails on any exception."""

    def opened(page: str = "overview", **query: str) -> AppTest:
        at = AppTest.from_file(str(MAIN), default_timeout=30)
        for name, value in query.items():
            at.query_params[name] = value
        at.run()
        if page != "overview":
            at.switch_page(f"views/{page}.py").run()
        assert not at.exception
        return at

    return opened


def html(at: AppTest) -> str:
    """Everything drawn by markup, the sidebar included, the style sheet left out."""
    return "\n".join(item.proto.body for item in at.get("html") if not item.proto.body.startswith("<style"))


def standing(at: AppTest) -> list[str]:
    """What the bars of jobs say."""
    bars = [item for item in at.get("bidi_component") if item.key.startswith("job_bar_")]
    return [json.loads(bar.proto.json)["stage"] for bar in bars]


def charts(at: AppTest) -> list[Any]:
    """The charts that a person sees: not the hidden one that makes the browser load plotly early."""
    return [chart for chart in at.get("plotly_chart") if chart.key != "preload_chart"]


def link(at: AppTest) -> dict[str, str]:
    """The page's query parameters; AppTest holds what a page set as words and what a test set as lists."""
    return {name: value if isinstance(value, str) else value[-1] for name, value in at.query_params.items()}
