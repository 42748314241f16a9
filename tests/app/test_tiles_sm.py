"""The measured panel of the Tiles page: empty, replayed from a recording of a test's own, measured here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import services
from flashsvd.jobs.kinds import kind_of
from flashsvd.onchip import sm_trace
from flashsvd.onchip.calls import KernelCall
from flashsvd.onchip.sm_trace import write_trace
from flashsvd.onchip.trace_request import TraceRequest
from tests.app import fakes
from tests.app.conftest import Desk, charts, html
from tests.onchip.sm_samples import MACHINE, trace

Open = Callable[..., AppTest]
SHOWN = KernelCall("ffn", "fp32", 8, 256, 104, 104, width=1024, hidden=256)
"""What the page opens on."""


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sm_trace, "folder", lambda: tmp_path)
    return tmp_path


def test_without_a_recording_it_says_how_one_is_made(open_app: Open, recordings: Path) -> None:
    at = open_app("tiles")
    words = html(at)
    assert "No recording of FFN v1 yet" in words and "python -m flashsvd.onchip.trace" in words
    assert "tiles_sm" not in [chart.key for chart in charts(at)]
    assert not [button for button in at.button if button.key == "run_trace"], "no GPU in the worker"


def test_a_recording_is_replayed_with_its_machine(open_app: Open, recordings: Path) -> None:
    write_trace(recordings / "a.parquet", trace(528, at_once=2, call=SHOWN))
    at = open_app("tiles")
    words = html(at)
    assert "tiles_sm" in [chart.key for chart in charts(at)]
    assert "REPLAY · H200, 20 Nov 2026" in words and "H200, 20 Nov 2026 · rank 104, fp32" in words
    assert "Predicted 2 per SM, seen 2." in words and "as its shared memory can" in words
    assert "Clocks cost +0.9 %: 88.9 µs (88.7 to 89.3) with, 88.1 µs (87.9 to 88.4) without" in words
    assert "equal to the bit" in words and "counts in 32 ns" in words


def test_the_nearest_recording_says_in_what_it_differs(open_app: Open, recordings: Path) -> None:
    write_trace(recordings / "a.parquet", trace(256, call=dataclasses.replace(SHOWN, rank=240, dtype="bf16")))
    assert "nearest: bf16 for fp32, rank 240 for 104" in html(open_app("tiles"))


def test_a_broken_recording_is_one_line(open_app: Open, recordings: Path) -> None:
    (recordings / "a.parquet").write_bytes(b"no table")
    at = open_app("tiles")
    assert "a.parquet is not a recording of programs" in html(at)
    assert "tiles_occupancy" in [chart.key for chart in charts(at)]


def test_measuring_here_is_a_job_and_is_shown_live(
    open_app: Open, desk: Desk, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_trace(recordings / "a.parquet", trace(256, call=SHOWN))
    monkeypatch.setattr(fakes.FakeJobs, "machines", lambda self: (MACHINE,))
    at = open_app("tiles")
    at.run()
    at.button(key="run_trace").click().run()
    request = desk.jobs.requests["job0"]
    assert request == TraceRequest(SHOWN) and kind_of(request).name == "trace"
    desk.jobs.finish("job0", trace(132, call=SHOWN, created="2026-11-21T10:00:00+00:00"))
    at.run()
    words = html(at)
    assert "LIVE · H200, 21 Nov 2026" in words and "Predicted 1 per SM, seen 1." in words
    assert not desk.store.results, "a trace is no run"


def test_a_gpu_that_is_not_known_has_no_button(
    open_app: Open, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(MACHINE, accelerator="NVIDIA TITAN X")
    monkeypatch.setattr(fakes.FakeJobs, "machines", lambda self: (other,))
    at = open_app("tiles")
    at.run()
    assert not [button for button in at.button if button.key == "run_trace"]


def test_files_are_read_anew_when_they_change(recordings: Path) -> None:
    assert len(services.sm_traces()) == 0
    write_trace(recordings / "a.parquet", trace(call=SHOWN))
    assert len(services.sm_traces()) == 1
