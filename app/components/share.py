"""What is on screen, to take away: a link, code that repeats it, files, and a step of a talk."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from urllib.parse import urlencode

import streamlit as st

from app import session, snippets, talk
from app.components import markup
from app.evidence import Evidence
from app.state import Settings
from flashsvd.results import Comparison, Curve, to_json


def share(settings: Settings, evidence: Evidence) -> None:
    """The menu under the controls."""
    with st.popover("Copy link · Export", width="stretch"):
        base = (st.context.url or "").split("?")[0]
        st.caption("Link to what is on screen")
        st.code(base + "?" + urlencode(session.address()), language=None, wrap_lines=True)
        python, shell = st.tabs(["Python", "Shell"])
        with python:
            st.code(snippets.python(settings), language="python", height=132)
        with shell:
            st.code(snippets.command(settings), language="bash", wrap_lines=True)
        _files(settings, evidence)
        _step()


def _files(settings: Settings, evidence: Evidence) -> None:
    name = f"flashsvd-{settings.model.replace('/', '-')}"
    left, right = st.columns(2, gap="xsmall", wrap=False)
    with left:
        st.download_button(
            "Notebook",
            data=lambda: snippets.notebook(settings),
            file_name=f"{name}.ipynb",
            mime="application/x-ipynb+json",
            on_click="ignore",
            width="stretch",
        )
    run = evidence.comparison
    if run is None:
        return
    with right:
        st.download_button(
            "Run (JSON)",
            data=lambda: json.dumps(to_json(run), indent=1),
            file_name=f"{name}.json",
            mime="application/json",
            on_click="ignore",
            width="stretch",
        )
    st.download_button(
        "Recording (Parquet): replays in any workbench",
        data=lambda: recording_bytes(run, evidence.curve, snippets.command(settings)),
        file_name=f"{name}.parquet",
        mime="application/vnd.apache.parquet",
        on_click="ignore",
        width="stretch",
    )


def recording_bytes(run: Comparison, curve: Curve | None, command: str) -> bytes:
    """A recording of a run as the bytes of its file."""
    from flashsvd.recording import Recording, write

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.parquet"
        write(path, Recording(run, curve, {}, command))
        return io.BytesIO(path.read_bytes()).getvalue()


def _step() -> None:
    steps = talk.steps()
    st.divider()
    st.button(
        "Add this page to the talk",
        key="add_step",
        on_click=talk.add_here,
        disabled=len(steps) >= talk.MOST_STEPS,
        width="stretch",
    )
    markup.muted(f"{len(steps)} of {talk.MOST_STEPS} steps; Present shows them.", "fs-foot")
